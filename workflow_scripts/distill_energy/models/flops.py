"""Floating-point operations of a causal language model, from its shape and the tokens that went through it.

A multiplication and an addition are two. Counted are the matrix products: projections, attention scores, experts that a
token visits, the output layer on the rows that it ran on; element-wise work, norms and soft-maxes are left out, as
``torch.utils.flop_counter`` leaves them out. A backward pass costs two forward ones (one for the weights' gradient, one
for the inputs'), recomputation under checkpointing one more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What decides a forward pass's operations, of a model or a part of one."""

    per_token: float  # FLOPs of a token's products, attention scores and output layer left out
    attention: float  # FLOPs of a token for each position that it looks at, over all layers
    output: float  # FLOPs of a row of the output layer


def shape_of(model: Any) -> Shape | str:
    """The shape of a loaded model, read off its linear layers, or why it cannot be told.

    Mixtures of experts count the experts that a token visits. Models whose mixing is no attention (state spaces) have
    no such count.
    """
    import torch

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    heads, layers = getattr(config, "num_attention_heads", None), getattr(config, "num_hidden_layers", None)
    if not heads or not layers:
        return f"{type(model).__name__}: its configuration names no attention heads and layers"
    output = model.get_output_embeddings()
    total = 0.0
    for name, module in model.named_modules():
        if module is output or not isinstance(module, torch.nn.Linear):
            continue
        if "mamba" in name or "ssm" in name:
            return f"{type(model).__name__}: state-space layers are not counted"
        total += 2.0 * module.weight.numel()
    experts = 0.0
    visited, there = getattr(config, "num_experts_per_tok", None), _experts(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3 and there and parameter.shape[0] == there and "expert" in name:
            experts += 2.0 * parameter.numel() * visited / there  # fused experts: [experts, in, out]
    if there and not experts:
        linear = sum(
            2.0 * m.weight.numel()
            for n, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and ".experts." in n
        )
        total += linear * (visited / there - 1.0)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(total + experts, 4.0 * heads * width * layers, 2.0 * output.weight.numel())


def _experts(config: Any) -> int | None:
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if value := getattr(config, name, None):
            return int(value)
    return None


def forward_flops(shape: Shape, tokens: float, attended: float, rows: float) -> float:
    """Of ``tokens`` that look at ``attended`` positions in all, with ``rows`` rows through the output layer."""
    return shape.per_token * tokens + shape.attention * attended + shape.output * rows


def attended_whole(lengths: Any) -> float:
    """Positions that a full causal product over sequences of these lengths computes: Σ length², as kernels without a
    triangular saving count (``torch.utils.flop_counter`` does)."""
    return float(sum(float(n) * float(n) for n in lengths))


def training_flops(
    shape: Shape, tokens: float, attended: float, rows: float, recomputed: bool = False
) -> Mapping[str, float]:
    """``forward``, ``backward`` and ``recompute`` of trained tokens."""
    forward = forward_flops(shape, tokens, attended, rows)
    again = shape.per_token * tokens + shape.attention * attended if recomputed else 0.0
    return {"forward": forward, "backward": 2.0 * forward, "recompute": again}


def counted(shape: Shape | str, parts: Mapping[str, float] | None) -> dict[str, Any]:
    """For a sidecar's results: ``flops`` and its parts, or ``flops_reason``."""
    if parts is None:
        return {"flops": None, "flops_reason": shape if isinstance(shape, str) else "not counted"}
    return {"flops": sum(parts.values()), **{f"flops_{name}": value for name, value in parts.items()}}


def flops_of_forward(model: Any, lengths: Sequence[int], rows: int) -> dict[str, Any]:
    """Of one forward pass over whole sequences of these lengths, ``rows`` rows of them through the output layer."""
    shape = shape_of(model)
    if isinstance(shape, str):
        return counted(shape, None)
    return counted(shape, {"forward": forward_flops(shape, sum(lengths), attended_whole(lengths), rows)})


def flops_of_generation(model: Any, prompts: Sequence[int], answers: Sequence[int]) -> dict[str, Any]:
    """Of answers decoded with a cache: prompt i of ``prompts[i]`` tokens, then ``answers[i]`` tokens, each of which
    looks at all before it."""
    shape = shape_of(model)
    return counted(shape, None if isinstance(shape, str) else generation_flops(shape, prompts, answers))


def generation_flops(shape: Shape, prompts: Sequence[int], answers: Sequence[int]) -> dict[str, float]:
    """``prefill`` and ``decode`` of answers, by the lengths of prompts and answers in tokens."""
    pairs = list(zip(prompts, answers, strict=True))
    decoded = sum(max(new - 1, 0) for _, new in pairs)  # the prefill yields the first
    # The k-th token fed (from 1) looks at the prompt and at k of the answer's own.
    looked = sum(float(n) * max(new - 1, 0) + max(new - 1, 0) * new / 2 for n, new in pairs)
    return {
        "prefill": forward_flops(shape, sum(prompts), attended_whole(prompts), len(pairs)),
        "decode": forward_flops(shape, decoded, looked, decoded),
    }


class Operations:
    """Counts what loaded models compute, by the shapes that go into them: for work of which no one place knows the
    lengths, such as a suite of benchmarks, half of them other people's.

    A position that an attention mask leaves out counts nothing; without a mask every position counts.
    """

    def __init__(self) -> None:
        self._watched: list[_Watched] = []
        self._known = 0.0
        self.reason: str | None = None  # why the count is not whole

    def watch(self, model: Any) -> "_Watched | None":
        """Count every pass through a model from now on."""
        shape = shape_of(model)
        if isinstance(shape, str):
            self.reason = shape
            return None
        watched = _Watched(shape)
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
        decoder = model.base_model if decoder is None or decoder is model else decoder
        decoder.register_forward_hook(watched.passed, with_kwargs=True)
        model.get_output_embeddings().register_forward_hook(watched.produced)
        self._watched.append(watched)
        return watched

    def generated(self, model: Any, prompts: Sequence[int], answers: Sequence[int]) -> None:
        """Answers that another process made of this model (its weights may be missing), by their lengths in tokens."""
        shape = shape_of(model)
        if isinstance(shape, str):
            self.reason = shape
        else:
            self._known += sum(generation_flops(shape, prompts, answers).values())

    def total(self) -> float | None:
        """FLOPs so far; None where they are not known, for ``reason``."""
        return None if self.reason else self._known + sum(watched.flops() for watched in self._watched)


class _Watched:
    """Tokens, positions looked at and output rows of one model. Sums of masks stay on their device until asked for."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.tokens: Any = 0.0
        self.attended: Any = 0.0
        self.rows = 0

    def passed(self, module: Any, args: tuple, kwargs: Mapping[str, Any], output: Any) -> None:
        given = next((kwargs[k] for k in ("input_ids", "inputs_embeds") if kwargs.get(k) is not None), None)
        rows, new = (args[0] if given is None else given).shape[:2]
        mask = kwargs.get("attention_mask")
        if hasattr(mask, "dim") and mask.dim() == 2:
            own, whole = mask[:, -new:].double().sum(1), mask.double().sum(1)
            self.tokens = self.tokens + own.sum()
            self.attended = self.attended + (own * whole).sum()
            return
        cache = kwargs.get("past_key_values", kwargs.get("cache"))
        whole = new if cache is None else int(cache.get_seq_length())
        self.tokens = self.tokens + float(rows * new)
        self.attended = self.attended + float(rows * new * max(whole, new))

    def produced(self, module: Any, args: tuple, output: Any) -> None:
        self.rows += output.numel() // output.shape[-1]

    def flops(self) -> float:
        return forward_flops(self.shape, float(self.tokens), float(self.attended), float(self.rows))


def flops_of_training(
    model: Any,
    batches: Iterable[tuple[Sequence[int], int]],
    evaluated: Iterable[tuple[Sequence[int], int]] = (),
    recomputed: bool = False,
    adapted: bool = False,
    twice: bool = False,
) -> dict[str, Any]:
    """Of a training: (lengths of the examples, labels) of each batch and of each evaluation. ``twice``: the output
    layer goes over the labels once more (``kd.losses.dpo``).

    With low-rank adapters the frozen weights have no gradient of their own, so that a backward pass costs one forward.
    """
    shape = shape_of(model)
    if isinstance(shape, str):
        return counted(shape, None)
    total = {"forward": 0.0, "backward": 0.0, "recompute": 0.0}
    for lengths, labels in batches:
        total["recompute"] += shape.output * labels if twice else 0.0
        part = training_flops(shape, sum(lengths), attended_whole(lengths), labels, recomputed)
        for name, value in part.items():
            total[name] += value / 2 if adapted and name == "backward" else value
    total["evaluation"] = evaluation_flops(shape, evaluated)
    return counted(shape, total)


def evaluation_flops(shape: Shape, evaluated: Iterable[tuple[Sequence[int], int]]) -> float:
    """Of forward passes over (lengths of the examples, labels)."""
    return float(sum(forward_flops(shape, sum(n), attended_whole(n), labels) for n, labels in evaluated))
