"""``student_training`` of a pipeline that quantises: load, round, save, load again and compare. Nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.params import QuantisedParams
from ..context import Context
from ..errors import UserError
from ..pipelines import get


def main(ctx: Context[QuantisedParams]) -> dict[str, Any]:
    """Write ``model/`` (safetensors) and ``quantised.parquet`` (a row for each rounded weight). Returns the results.

    Raises UserError where torchao is lacking, a layer's shape does not fit, or the saved model is another one.
    """
    with ctx.meter.phase("start"):
        import pyarrow as pa
        import torch

        from ..models import quantised as q
        from ..models.sources import folder_of, load_model, load_tokenizer, model_dtype
        from ..store import atomic
        from .run import probe_logits, save_folder

    params, spec = ctx.params, ctx.params.model
    options = get(params.pipeline.kind).settings(params.pipeline).options
    bits, group = options["bits"], options["group_size"]
    with ctx.meter.phase("load"):
        original = load_model(spec, ctx.inputs, params.dtype)
        tokenizer = load_tokenizer(spec, ctx.inputs)
        if spec["source"] in ("pruned", "random"):  # these are made in memory
            place, kwargs = str(ctx.work / "plain"), {"local_files_only": True}
            original.save_pretrained(place)
        else:
            place, kwargs = folder_of(spec, ctx.inputs)
    q.check_groups(original, bits, group)
    model = q.quantised_model(place, model_dtype(params.dtype), bits, group, **kwargs).to(original.device)
    rows = q.losses(model, original)
    if not rows:
        raise UserError(f"model {place}: has no linear layer that torchao rounds")
    probe = probe_logits(model)

    def check(folder: Path) -> None:
        found = probe_logits(load_model({"source": "folder", "path": str(folder)}, {}, params.dtype))
        if not torch.equal(found, probe):
            raise UserError("the saved quantised model is not the one that was made: its logits differ when loaded")

    with ctx.meter.phase("save"):
        save_folder(model, tokenizer, ctx.out / "model", check)
        atomic.write_parquet(ctx.out / "quantised.parquet", pa.Table.from_pylist(rows))
    return {
        "pipeline": params.pipeline.kind,
        "bits": bits,
        "group_size": group if bits == 8 else group or q.GROUP,
        "tensor": rows[0]["tensor"],
        "weights_rounded": sum(row["rows"] * row["columns"] for row in rows),
        "parameters": sum(p.numel() for p in original.parameters()),
        "largest_relative_error": max(row["relative_error"] for row in rows),
        "weights_bytes": q.weights_bytes(ctx.out / "model"),
        "saved_dtype": str(original.dtype).removeprefix("torch."),
        "flops": None,
        "flops_reason": "rounding makes no matrix product",
    }
