"""One training from the stage's context to its artifact."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config.params import TrainingParams
from ..context import Context
from ..energy import attempts_of
from ..errors import UserError
from ..kd.losses.ce import kernel_version
from ..models.flops import counted, evaluation_flops, flops_of_training, shape_of
from ..models.sources import load_model
from ..store import atomic, sidecar
from .job import Job, Peers
from .learner import Learner
from .loop import Loop
from .memory import keep_freed_memory, out_of_memory
from .processes import check_processes, device_of, group, member, nodes_of
from .reference import loop_of
from .state import State
from .trajectory import write_trajectory

#: Relative difference of logits of one model on two devices.
SAVED_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def train(ctx: Context[TrainingParams]) -> dict[str, Any]:
    """Train, save the best weights and the trajectory; returns the results."""
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    job = job_of_stage(ctx, Peers(device=device_of(device_type, 0)))
    count, nodes = job.training.processes or 1, nodes_of(job.training)
    check_processes(count, device_type)
    if count * nodes == 1:
        return _fit_in(contextlib.nullcontext(job), job, ctx.out)
    spec = {**ctx.spec.to_json(), "attempts": str(Path(ctx.spec.attempts).resolve())}
    return _fit_in(group(job, count, device_type, nodes, spec), job, ctx.out)


def train_among(ctx: Context[TrainingParams], peers: Peers, rendezvous: str, count: int) -> dict[str, Any]:
    """As ``train``, by the rank 0 of processes that something else started, ``count`` on this node."""
    job = job_of_stage(ctx, peers)
    return _fit_in(member(job, peers, rendezvous, count), job, ctx.out)


def job_of_stage(ctx: Context[TrainingParams], peers: Peers) -> Job:
    """The training that a stage's context asks for."""
    return Job(
        params=ctx.params,
        inputs=ctx.inputs,
        work=ctx.work,
        meter=ctx.meter,
        log=ctx.log,
        name=ctx.spec.name,
        version=ctx.spec.version,
        joules_before=joules_of_earlier_attempts(ctx.spec.attempts),
        peers=peers,
    )


def _fit_in(processes: AbstractContextManager[Job], job: Job, out: Path) -> dict[str, Any]:
    """Train among the group that ``processes`` joins. Raises UserError where memory ran out."""
    if job.peers.device == "cpu":
        keep_freed_memory()
    try:
        with processes as joined:
            return fit(joined, out)
    except (RuntimeError, MemoryError) as error:
        message = out_of_memory(job, error)
        if message is None:
            raise
        raise UserError(message) from error


def fit(job: Job, out: Path) -> dict[str, Any]:
    """Train as rank 0 and write the artifact into ``out``."""
    with job.meter.phase("load"):
        loop = loop_of(job)
    state = loop.run()
    with job.meter.phase("save"):
        save_student(loop.learner, loop.final_weights(), out / "model")
    write_trajectory(state.rows, out / "trajectory.parquet")
    return results(loop, state)


def joules_of_earlier_attempts(folder: str | Path) -> float | None:
    """Gross joules of the attempts that ended before this one; None if one of them is unknown."""
    totals = [sidecar.total(a.components)[0] for a in attempts_of(folder) if a.outcome != "running"]
    return None if any(value is None for value in totals) else float(sum(totals))


def save_student(learner: Learner, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the student (adapters merged) as a plain Hugging Face folder with the tokenizer, atomically."""
    model = learner.model_with(weights)
    model.config.use_cache = True
    model.config.dtype = learner.save_dtype
    probe = probe_logits(model)
    save_folder(model, learner.tokenizer, folder, lambda saved: check_saved(saved, probe, learner.save_dtype))


def save_folder(model: Any, tokenizer: Any, folder: Path, check: Callable[[Path], None]) -> None:
    """Write a model with its tokenizer as a plain Hugging Face folder, atomically; ``check`` sees it first."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        check(temporary)
        for path in temporary.iterdir():
            atomic.sync_file(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        atomic.sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@torch.no_grad()
def probe_logits(model: Any) -> torch.Tensor:
    """Logits of a model on a few tokens, in float32 on the host. A compiled one is asked without compiling anew for
    the dtype in which it is saved."""
    device = model.get_input_embeddings().weight.device
    rows = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(24, device=device) * 37 % rows)[None]
    training = model.training
    with torch.compiler.set_stance("force_eager"):
        logits = model.eval()(input_ids=ids, use_cache=False).logits[0].float().cpu()
    model.train(training)
    return logits


def check_saved(folder: Path, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Load the student as anyone would and compare its logits. Raises UserError if another model was saved."""
    name = str(dtype).removeprefix("torch.")
    found = probe_logits(load_model({"source": "folder", "path": str(folder)}, {}, dtype=name, device="cpu"))
    off = float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    if found.shape != expected.shape or not off <= SAVED_TOLERANCE[dtype]:
        raise UserError(
            f"the saved student is not the one that was trained: its logits differ by {off:.1%} when it is loaded again"
        )


def results(loop: Loop, state: State) -> dict[str, Any]:
    """The sidecar's ``results``: JSON scalars."""
    learner = loop.learner
    last = state.rows[-1]
    changed = [row["share_changed"] for row in state.rows if row.get("share_changed") is not None]
    joules = next((row["joules"] for row in reversed(state.rows) if row.get("joules") is not None), None)
    slots = state.tokens + state.padding
    evaluated_j = state.evaluation_j if state.evaluation_j is not None and joules else None
    return {
        "pipeline": learner.pipeline.kind,
        "steps": state.step,
        "stop_reason": state.stop_reason,
        "train_loss": last["train_loss"],
        "best_step": state.best_step,
        "eval_loss": _finite(state.best_loss),
        "gold_eval_loss": _finite(state.best_gold),
        "padding_share": state.padding / slots if slots else None,
        "evaluation_share_seconds": state.evaluation_s / state.seconds if state.seconds else None,
        "evaluation_share_joules": evaluated_j / joules if evaluated_j is not None else None,
        "evaluation_rows": len(loop.gold) + (len(loop.own) if loop.own is not None else 0),
        "checkpoint_share_seconds": state.checkpoint_s / state.seconds if state.seconds else None,
        "tokens_per_s": state.tokens / state.seconds if state.seconds else None,
        "precision": learner.precision.used,
        "precision_note": learner.precision.note,
        "attention": learner.attention,
        "ce_kernel": kernel_version(learner.settings.ce_kernel),
        "saved_dtype": str(learner.save_dtype).removeprefix("torch."),
        "share_changed": sum(changed) / len(changed) if changed else None,
        "parameters": learner.parameters,
        "parameters_trained": sum(w.numel() for w in learner.trainable.values()),
        "processes": loop.peers.world,
        **({} if loop.live is None else {"sampled_tokens": loop.live.sampled}),
        **_flops(loop, state),
    }


def _flops(loop: Loop, state: State) -> dict[str, Any]:
    """Of the whole training: which examples a step saw follows from its number."""
    seen = [rows for rows in (loop.gold, loop.own) if rows is not None] * len(state.losses)
    evaluated = [(rows.sequences(np.arange(len(rows))), int(rows.label_counts().sum())) for rows in seen]
    if loop.live is not None:  # the lengths are those of the student's own answers, counted as they were made
        parts = loop.live.flops
        if parts is None:
            return counted(loop.live.reason, None)
        shape = shape_of(loop.learner.student.lm)
        parts = {**parts, "backward": parts["backward"] / (2 if loop.learner.adapted else 1)}
        return counted(shape, {**parts, "evaluation": evaluation_flops(shape, evaluated)})
    train, labels = loop.data.train, loop.data.train.label_counts()
    steps = (loop.sampler.batch(step) for step in range(state.step))
    return flops_of_training(
        loop.learner.student.lm,
        ((train.sequences(index), int(labels[index].sum())) for index in steps),
        evaluated,
        bool(loop.training.gradient_checkpointing),
        loop.learner.adapted,
        twice=loop.learner.pipeline.pairs,
    )


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
