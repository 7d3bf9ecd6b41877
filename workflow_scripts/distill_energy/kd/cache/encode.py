"""From a chunk of the teacher's logits to quantised rows. torch; runs where the logits are (CPU or GPU)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from .rows import LSE_LOW, LSE_STEP, EncodedRows

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .spec import CacheSpec

FLOOR = 200.0  # nats below the largest logit; exp(−200) is 0 in fp32
OUTSIDE = -1e4  # stands for −∞, so that 0 · x is 0


def uniforms(seed: int, example_id: str, n: int) -> "np.ndarray":
    """n numbers in [0, 1) that depend on the seed, the example and the position alone (SplitMix64).

    So a cache that was killed and resumed, or cut into other shards, holds the same samples.
    """
    digest = hashlib.blake2b(f"{seed}:{example_id}".encode(), digest_size=8).digest()
    state = np.uint64(int.from_bytes(digest, "little"))
    with np.errstate(over="ignore"):
        x = state + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def encode_rows(
    logits: "torch.Tensor",
    spec: "CacheSpec",
    uniform: "np.ndarray | torch.Tensor",
    labels: "torch.Tensor | None" = None,
    chunk_rows: int | None = None,
) -> EncodedRows:
    """Quantise teacher logits.

    logits: [n, V] of any float type; uniform: [n] in [0, 1), one a row (``uniforms``); labels: [n] token ids, for the
    teacher's loss and accuracy. At most ``chunk_rows`` rows (None: about 8 MB of them on a CPU, 128 MB on a GPU) are
    held in fp32 at a time. V must be ``spec.vocab_size``.
    """
    n, vocabulary = logits.shape
    if vocabulary != spec.vocab_size:
        raise ValueError(f"{vocabulary} logits a row, the cache's vocabulary has {spec.vocab_size}")
    uniform = torch.as_tensor(uniform, dtype=torch.float32, device=logits.device)
    chunk_rows = chunk_rows or rows_at_a_time(logits)
    parts = []
    for start in range(0, n, chunk_rows):
        rows = slice(start, start + chunk_rows)
        parts.append(encode_chunk(logits[rows].float(), spec, uniform[rows], None if labels is None else labels[rows]))
    if not parts:
        parts = [encode_chunk(logits.float(), spec, uniform, labels)]
    return OnDevice(parts).rows()


def rows_at_a_time(weight: "torch.Tensor", vocabulary: int | None = None) -> int:
    """Rows that are encoded together: 256 MB of fp32 logits on a GPU, 8 MB on a CPU."""
    return max(1, (1 << (26 if weight.is_cuda else 21)) // (vocabulary or weight.shape[-1]))


class OnDevice:
    """Encoded chunks where they were made. The copy to the host starts at once, through pinned memory; ``rows`` waits
    for it, perhaps in another thread, while the GPU goes on."""

    def __init__(self, parts: "list[dict[str, torch.Tensor]]") -> None:
        width = max(part["tail_ids"].shape[1] for part in parts)
        for part in parts if len(parts) > 1 else ():
            for name, fill in (("tail_ids", -1), ("tail_codes", 0), ("tail_counts", 0)):
                part[name] = torch.nn.functional.pad(part[name], (0, width - part[name].shape[1]), value=fill)
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self._event = None
        if next(iter(whole.values())).is_cuda:
            self._host = {n: torch.empty(v.shape, dtype=v.dtype, pin_memory=True) for n, v in whole.items()}
            for name, value in whole.items():
                self._host[name].copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = whole

    def rows(self) -> EncodedRows:
        """The rows, in order."""
        if self._event is not None:
            self._event.synchronize()
        arrays = {name: value.numpy() for name, value in self._host.items()}
        arrays["lse_codes"] = arrays["lse_codes"].astype("uint16")
        names = ("head_ids", "head_codes", "tail_ids", "tail_codes", "tail_counts", "lse_codes")
        return EncodedRows(*(arrays.pop(name) for name in names), stats=arrays)


def concatenate(parts: "list[EncodedRows]") -> EncodedRows:
    """Rows of several chunks, in order; the sampled tail is padded to the widest."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.tail_ids.shape[1] for part in parts)

    def join(name: str, fill: int | None = None) -> "np.ndarray":
        pieces = [getattr(part, name) for part in parts]
        if fill is not None:
            pieces = [np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=fill) for p in pieces]
        return np.concatenate(pieces)

    stats = {key: np.concatenate([part.stats[key] for part in parts]) for key in parts[0].stats}
    head, tail = ("head_ids", "head_codes"), (("tail_ids", -1), ("tail_codes", 0), ("tail_counts", 0))
    return EncodedRows(*map(join, head), *(join(*pair) for pair in tail), join("lse_codes"), stats=stats)


def encode_chunk(
    x: "torch.Tensor", spec: "CacheSpec", u: "torch.Tensor", labels: "torch.Tensor | None"
) -> "dict[str, torch.Tensor]":
    """One fp32 chunk [r, V], on its device: what is stored and statistics. One pass of exp where temperatures double.

    On a GPU nothing here waits for it.
    """
    r, k = x.shape[0], spec.head
    # Each pass over the chunk costs: the head is asked for the largest logit and its token.
    top, head_ids = torch.topk(x, max(k, 1), dim=-1)
    largest = top[:, :1]
    stats = {}
    if labels is not None:
        picked = (x.gather(1, labels[:, None].long()) - largest)[:, 0]
        stats["correct"] = (head_ids[:, 0] == labels).float()
    # Masked tokens (−∞) become merely impossible, so that no difference of infinities arises.
    x = (x - largest).clamp_(min=-FLOOR)
    top, head_ids = (top - largest).clamp_(min=-FLOOR)[:, :k], head_ids[:, :k]
    if k:
        x.scatter_(1, head_ids, OUTSIDE)  # x holds the tail only from here on
    tail_sums, head_sums, powers = {}, {}, {}
    for t in sorted({1.0, *spec.lse_temperatures}, reverse=True):
        powers[t] = torch.mul(powers[2 * t], powers[2 * t]) if 2 * t in powers else (x / t).exp_()
        tail_sums[t] = powers[t].sum(-1, keepdim=True)
        head_sums[t] = torch.exp(top / t).sum(-1, keepdim=True)
    z = tail_sums[1.0] + head_sums[1.0]
    log_z = torch.log(z)[:, 0]  # relative to the largest logit, like all below
    dot = torch.linalg.vecdot(powers[1.0], x)[:, None] + (torch.exp(top) * top).sum(-1, keepdim=True)
    stats["entropy"] = log_z - (dot / z)[:, 0]
    if labels is not None:
        stats["loss"] = log_z - picked
    stats["head_mass"] = torch.cat([head_sums[t] / (head_sums[t] + tail_sums[t]) for t in spec.lse_temperatures], -1)
    reference = torch.zeros_like(largest) if k else log_z[:, None]
    lse = torch.cat([torch.log(tail_sums[t]) - reference / t for t in spec.lse_temperatures], -1)
    lse_codes = ((lse - LSE_LOW) / LSE_STEP).round().clamp(0, 65535)
    head_codes = _ranked_codes(-top, spec)
    if spec.tail:
        shares = [powers[t].div_(tail_sums[t].clamp_min(1e-38)) for t in spec.proposal_temperatures]
        for share in shares[1:]:
            shares[0].add_(share)
        ids, counts = _systematic(shares[0], spec.tail, u)
        top_of_tail = -head_codes[:, -1:] * spec.value_step if k else reference
        codes = ((top_of_tail - x.gather(1, ids.clamp_min(0))) / spec.tail_step).round()
        codes = torch.where(ids >= 0, codes.clamp(0, 2**spec.value_bits - 1), torch.zeros_like(codes))
    else:
        ids = torch.empty(r, 0, dtype=torch.long, device=x.device)
        counts, codes = ids, ids
    return {
        "head_ids": head_ids.int(),
        "head_codes": head_codes.int(),
        "tail_ids": ids.int(),
        "tail_codes": codes.int(),
        "tail_counts": counts.int(),
        "lse_codes": lse_codes.int(),
        **stats,
    }


def _ranked_codes(values: "torch.Tensor", spec: "CacheSpec") -> "torch.Tensor":
    """Codes of ascending values [r, K] whose successive differences fit (16 bits at rank 1, value_bits after)."""
    codes = (values / spec.value_step).round()
    if codes.shape[1] < 2:
        return codes
    steps = torch.diff(codes, dim=1)
    steps[:, :1].clamp_(max=65535)
    steps[:, 1:].clamp_(max=2**spec.value_bits - 1)
    return torch.cat([codes[:, :1], steps], 1).cumsum(1)


def _systematic(proposal: "torch.Tensor", draws: int, u: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Systematic sampling: (ids [r, D] ascending and padded with −1, counts [r, D]) with Σ counts = draws.

    Token j is drawn ⌊draws·π_j⌋ or ⌈draws·π_j⌉ times, draws·π_j on average: unbiased, with less variance than
    independent draws. ``proposal`` [r, V] need not be normalised; it is overwritten.
    """
    r = proposal.shape[0]
    # fp32: the rounding of a boundary moves chance from one token to its neighbour, either way alike.
    cdf = torch.cumsum(proposal, -1)
    total = cdf[:, -1:].clone()
    points = (torch.arange(draws, device=cdf.device) + u[:, None]) / draws * total
    drawn = torch.searchsorted(cdf, points, right=True).clamp_max(cdf.shape[1] - 1)
    empty = total[:, 0] <= 0  # nothing outside the head
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    first[empty] = False
    slot = first.cumsum(1) - 1
    # As wide as the widest row; a GPU would have to be waited for, to know it.
    width = draws if cdf.is_cuda else int(first.sum(1).max()) if r else 0
    ids = torch.full((r, width + 1), -1, dtype=torch.long, device=cdf.device)
    counts = torch.zeros((r, width + 1), dtype=torch.long, device=cdf.device)
    spill = torch.where(empty[:, None], torch.full_like(slot, width), slot)
    ids.scatter_(1, spill, drawn)
    counts.scatter_add_(1, spill, torch.ones_like(drawn))
    return ids[:, :width], counts[:, :width]
