"""What a logit cache keeps of the teacher's distribution at each response token.

Three formats:

* ``topk``: the ``head`` most probable tokens, and the mass of the rest as one bucket;
* ``sampled``: ``tail`` importance-sampled draws from the whole vocabulary (random-sampling KD, arXiv 2503.16870);
* ``head_tail``: the ``head`` most probable tokens exactly, and ``tail`` importance-sampled draws from the rest.

Every format keeps the log-sum-exp of what is *not* in the head at ``lse_temperatures``, so that the distribution is
normalised at any temperature. No format has a training temperature in it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ...config.sources import Logits
from ...errors import UserError

METHODS = ("topk", "sampled", "head_tail")
FORMAT_VERSION = 2

#: Without a head the gradient needs no log-sum-exp, and that at T = 1 is 0 by the choice of the reference.
DEFAULT_LSE = {"topk": (1.0, 2.0, 3.0, 4.0), "head_tail": (1.0, 2.0, 3.0, 4.0), "sampled": (1.0,)}
#: The temperature whose tail distribution the draws come from: the cached one that is nearest. For head_tail between
#: the temperatures that are used, so that the weights of none spread widely.
DEFAULT_PROPOSAL = {"sampled": 1.0, "head_tail": 3.0}


@dataclass(frozen=True)
class CacheSpec:
    """Parameters of a cache. ``head`` and ``tail`` count tokens a position (``tail``: draws, duplicates merged)."""

    method: str = "head_tail"
    vocab_size: int = 0
    head: int = 32
    tail: int = 64
    lse_temperatures: tuple[float, ...] | None = None  # None: the method's default
    proposal_temperatures: tuple[float, ...] | None = None  # a subset of lse_temperatures; None: the method's default
    value_step: float = 1 / 16  # nats between two stored logit values
    value_bits: int = 8  # bits of a stored difference: 8 or 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"logits.method: {self.method!r} is not one of {', '.join(METHODS)}")
        if self.vocab_size < 2:
            raise UserError(f"logit cache: vocab_size {self.vocab_size} is below 2")
        if self.value_bits not in (8, 16):
            raise UserError(f"logits.value_bits: {self.value_bits} is not 8 or 16")
        if not 0 < self.value_step <= 1:
            raise UserError(f"logits.value_step: {self.value_step} is not in (0, 1] nats")
        set_ = object.__setattr__
        if self.lse_temperatures is None:
            set_(self, "lse_temperatures", DEFAULT_LSE[self.method])
        if not self.lse_temperatures or any(not (t > 0 and math.isfinite(t)) for t in self.lse_temperatures):
            raise UserError(f"logits.lse_temperatures: {self.lse_temperatures} must be positive numbers")
        set_(self, "lse_temperatures", tuple(sorted({float(t) for t in self.lse_temperatures})))
        set_(self, "head", 0 if self.method == "sampled" else min(int(self.head), self.vocab_size))
        set_(self, "tail", 0 if self.method == "topk" else int(self.tail))
        if self.method != "sampled" and self.head < 1:
            raise UserError(f"logits.head: method {self.method} needs head ≥ 1")
        if self.method != "topk" and self.tail < 1:
            raise UserError(f"logits.tail: method {self.method} needs tail ≥ 1")
        if self.tail > 65535:
            raise UserError(f"logits.tail: {self.tail} is above 65,535")
        proposal = tuple(float(t) for t in self.proposal_temperatures or ())
        if self.tail and self.proposal_temperatures is None:
            proposal = (min(self.lse_temperatures, key=lambda t: abs(t - DEFAULT_PROPOSAL[self.method])),)
        if self.tail:
            missing = [t for t in proposal if t not in self.lse_temperatures]
            if missing or not proposal:
                raise UserError(
                    f"logits.proposal_temperatures: {list(proposal)} must be among lse_temperatures "
                    f"{list(self.lse_temperatures)}"
                )
        set_(self, "proposal_temperatures", proposal)

    @property
    def tail_step(self) -> float:
        """Nats between two values of draws below a head: coarser, since a draw weighs exp(z·(1/T − 1/T_proposal)),
        so that 8 bits reach deeper (24 nats by default; a clipped draw would count too much at a high T).
        """
        return 1.5 * self.value_step if self.head else self.value_step

    @classmethod
    def of(cls, logits: Logits, vocab_size: int) -> "CacheSpec":
        """From the ``logits`` section; what it leaves null is this class's to choose."""
        known = set(cls.__dataclass_fields__) - {"vocab_size"}
        chosen = {key: value for key, value in logits if key in known and value is not None}
        return cls(vocab_size=vocab_size, **chosen)

    def to_json(self) -> dict[str, Any]:
        """JSON object that ``from_json`` reads back."""
        data = asdict(self)
        data["lse_temperatures"] = list(self.lse_temperatures)
        data["proposal_temperatures"] = list(self.proposal_temperatures or ())
        return {"format_version": FORMAT_VERSION, **data}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "CacheSpec":
        """Raises UserError if the data were written by another version of the format."""
        data = dict(data)
        version = data.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise UserError(f"logit cache: format_version {version!r}, this version reads {FORMAT_VERSION}")
        data["lse_temperatures"] = tuple(data["lse_temperatures"])
        data["proposal_temperatures"] = tuple(data["proposal_temperatures"])
        return cls(**data)
