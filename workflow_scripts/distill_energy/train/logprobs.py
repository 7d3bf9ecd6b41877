"""The stage ``reference_logprobs``: a trained student's log-probabilities of the answers of pairs, computed once."""

from __future__ import annotations

from typing import Any

from ..config.params import LogprobsParams
from ..context import Context

MICRO_TOKENS = 4096  # of a batch without gradients, at most (or one pair)


def main(ctx: Context[LogprobsParams]) -> dict[str, Any]:
    """Write ``train.parquet`` and ``validation.parquet``, a row a pair: its id, the log-probabilities (nats, float64)
    and the labels of its chosen and its rejected answer. Raises UserError for answers that make no pairs."""
    with ctx.meter.phase("start"):
        import pyarrow as pa
        import torch

        from ..models.fingerprint import check_made_with, tokenizer_hash
        from ..models.flops import flops_of_forward
        from ..models.sources import load_model, load_tokenizer
        from ..store.atomic import write_parquet
        from .learner import reference_student
        from .pairs import LABELS, SCORES, read_pairs

    params, device = ctx.params, "cuda" if torch.cuda.is_available() else "cpu"
    with ctx.meter.phase("load"):
        tokenizer = load_tokenizer(params.model, ctx.inputs)
        student = reference_student(params.precision, lambda dtype: load_model(params.model, ctx.inputs, dtype, device))
    identity = tokenizer_hash(tokenizer)
    vocabulary = student.lm.get_output_embeddings().weight.shape[0]
    lengths: list[int] = []
    found = {}
    for split in ("train", "validation"):
        pairs = read_pairs(ctx.inputs["chosen"], ctx.inputs["rejected"], split, vocabulary)
        check_made_with(pairs.path, pairs.tokenizer_hash, identity, "student")
        scores = log_probabilities(student, pairs, ctx.meter, device)
        counts = pairs.sequence_labels.reshape(-1, 2)
        columns = {"id": pa.array(pairs.ids, pa.string())}
        columns |= {name: pa.array(scores[:, i], pa.float64()) for i, name in enumerate(SCORES)}
        columns |= {name: pa.array(counts[:, i], pa.int32()) for i, name in enumerate(LABELS)}
        write_parquet(ctx.out / f"{split}.parquet", pa.table(columns))
        ctx.log(f"reference_logprobs: {len(pairs)} pairs of {split}")
        sizes = (pairs.offsets[1:] - pairs.offsets[:-1]).tolist()
        lengths += sizes
        found |= {
            f"n_{split}": len(pairs),
            f"{split}_labels": int(counts.sum()),
            f"{split}_chosen_logprob_mean": float(scores[:, 0].mean()),
            f"{split}_rejected_logprob_mean": float(scores[:, 1].mean()),
        }
    return found | flops_of_forward(student.lm, lengths, found["train_labels"] + found["validation_labels"])


def log_probabilities(student: Any, pairs: Any, meter: Any, device: str) -> Any:
    """Log-probabilities [pairs, 2] of each pair's answers, float64 nats; tokens are counted in ``meter``."""
    import numpy as np
    import torch

    from ..kd.losses.dpo import label_losses
    from .batching import collate, cut_by_tokens

    out = np.empty((len(pairs), 2))
    order = pairs.lengths().argsort(kind="stable")
    for index in cut_by_tokens(order, pairs.lengths(), MICRO_TOKENS):
        batch = collate(pairs, index, 0, False, device)
        with torch.no_grad():
            losses = student.states_to(
                batch,
                lambda hidden, head, bias, cap, b=batch: label_losses(hidden, head.weight, b.labels, bias, cap)[1],
            )
        counts = pairs.sequence_labels[pairs.members(index)]
        sums = [part.sum() for part in losses.split(counts.tolist())]
        out[index] = -torch.stack(sums).view(-1, 2).cpu().numpy()
        meter.add_tokens("processed", batch.processed)
        meter.add_tokens("padding", batch.padding)
        meter.add_tokens("loss", len(batch.labels))
    return out
