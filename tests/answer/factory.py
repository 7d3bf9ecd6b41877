"""Synthetic results folders: a demo of three students × three pipelines × two seeds, with every artifact's tables."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill_energy.ledger.build import make_sidecar, write_scores, write_sidecar
from distill_energy.store.atomic import write_parquet
from distill_energy.store.sidecar import Co2e, Component, Hardware, Quality, Software, Tokens

TEACHER, DATASET = "smollm2-135m", "instructions"
HARDWARE = Hardware(host="node1", cpu="2-core CPU", cores=2, ram_bytes=24 << 30)
SOFTWARE = Software(python="3.11.2", packages={"torch": "2.13.0", "transformers": "5.16.1"}, git_commit="0" * 40)


def short(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


def components(gross_j: float, idle_share: float = 0.2) -> list[Component]:
    """A CPU estimate with idle, and a GPU that does not exist."""
    return [
        Component(component="gpu", source="unavailable", reason="no GPU", in_total=False),
        Component(
            component="cpu",
            source="estimated",
            method="codecarbon_process",
            gross_j=gross_j,
            idle_j=gross_j * idle_share,
            error_j=gross_j * 0.1,
        ),
    ]


def stage(root: Path, key, gross_j, labels=None, consumes=(), wasted=0.0, wall_s=None, **kwargs) -> Path:
    sidecar = make_sidecar(
        key,
        components(gross_j),
        labels=labels or {},
        consumes=consumes,
        wall_s=wall_s or gross_j / 20,
        start_utc=(start := kwargs.pop("start_utc", "2026-11-24T10:00:00Z")),
        end_utc=kwargs.pop("end_utc", max(start, "2026-11-24T10:01:00Z")),
        hardware=HARDWARE,
        software=SOFTWARE,
        tokens=kwargs.pop("tokens", Tokens(processed=10000, loss=4000)),
        co2e=Co2e(g=gross_j / 3.6e6 * 400, pue=1.0, intensity_g_per_kwh=400.0, region="SWE", source="test table"),
        quality=Quality(
            interval_asked_s=0.5, interval_reached_s=0.5, largest_gap_s=0.7, gaps=0, coverage=1.0, flags=["estimated"]
        ),
        wasted_j=wasted,
        **kwargs,
    )
    folder = write_sidecar(root, sidecar)
    write_power(folder, gross_j, wall_s or gross_j / 20)
    return folder


def write_power(folder: Path, gross_j: float, wall_s: float, seed: int = 0) -> None:
    """A power trace whose mean is gross_j / wall_s: one attempt, one CPU, ten samples a second at most 2,000."""
    n = min(int(wall_s * 2) + 2, 2000)
    shape = 1 + 0.25 * np.sin(np.linspace(0, 40, n)) + 0.1 * np.random.default_rng(seed).standard_normal(n)
    shape[: n // 12] *= 0.4
    rows = {
        "attempt": ["a"] * n,
        "mono_s": [float(t) for t in np.linspace(1000, 1000 + wall_s, n)],
        "component": ["cpu"] * n,
        "device": [None] * n,
        "watts": [float(w) for w in gross_j / wall_s * shape / shape.mean()],
        "counter_j": [None] * n,
    }
    types = {"attempt": pa.string(), "mono_s": pa.float64(), "component": pa.string(), "device": pa.string()}
    schema = pa.schema([*types.items(), ("watts", pa.float64()), ("counter_j", pa.float64())])
    write_parquet(folder / "power.parquet", pa.table(rows, schema=schema))


def write_items(folder: Path, scores: dict[str, np.ndarray]) -> None:
    rows = [
        {"benchmark": name, "item_id": f"{name}-{i}", "score": float(v)}
        for name, vs in scores.items()
        for i, v in enumerate(vs)
    ]
    write_parquet(folder / "items.parquet", pa.Table.from_pylist(rows))
    write_scores(
        folder,
        [
            {
                "benchmark": name,
                "score": float(v.mean()),
                "stderr": float(v.std(ddof=1) / np.sqrt(len(v))),
                "chance": 0.0,
                "n": len(v),
            }
            for name, v in scores.items()
        ],
    )


def write_inference(folder: Path, j_decode: float) -> None:
    rows = [
        {
            "batch_size": batch,
            "phase": phase,
            "tokens": 1000,
            "seconds": 10.0,
            "joules": 1000 * j_decode * scale,
            "j_per_token": j_decode * scale,
            "tok_s": 100.0,
            "source": "estimated",
            "reason": None,
        }
        for batch, base in ((1, 4.0), (8, 1.0))
        for phase, scale in (("prefill", base / 5), ("decode", base))
    ]
    write_parquet(folder / "inference.parquet", pa.Table.from_pylist(rows))


def write_trajectory(folder: Path, joules: float, start: float, end: float, column: str = "gold_eval_loss") -> None:
    steps = np.arange(0, 41, 5)
    losses = end + (start - end) * np.exp(-steps / 12)
    rows = [
        {
            "step": int(s),
            "tokens": int(s * 400),
            "joules": float(joules * s / 40),
            "train_loss": float(loss + 0.1),
            "eval_loss": float(loss),
            column: float(loss),
            "lr": 1e-3,
            "grad_norm": 1.0,
            "seconds": float(s),
        }
        for s, loss in zip(steps, losses, strict=True)
    ]
    write_parquet(folder / "trajectory.parquet", pa.Table.from_pylist(rows))


#: student → (training joules of SFT, evaluation joules, mean score of SFT, parameters, J/token decoding)
STUDENTS = {
    "6-layer": (1100.0, 420.0, 0.31, 49_000_000, 0.05),
    "12-layer": (2000.0, 700.0, 0.41, 70_000_000, 0.09),
    "18-layer": (3000.0, 980.0, 0.53, 92_000_000, 0.13),
}
#: pipeline → (teacher stage, its joules, training factor, score factor)
PIPELINES = {
    "sft": (None, 0.0, 1.0, 1.0),
    "kd": ("teacher_logits", 1300.0, 0.93, 1.06),
    "synthetic": ("teacher_generation", 2900.0, 0.80, 0.72),
}
BENCHMARKS = ("gold_accuracy", "choice", "agreement")


def demo(
    root: Path,
    seeds: tuple[int, ...] = (0, 1),
    students=tuple(STUDENTS),
    pipelines=tuple(PIPELINES),
    noise: float = 0.01,
    sweep: dict[str, list[dict]] | None = None,
) -> Path:
    """Write the demo's artifacts under ``root``. ``sweep``: pipeline → its hyperparameter settings."""
    rng = np.random.default_rng(1)
    stage(root, ("prerun", "host", short("prerun")), 150.0)
    data = ("preprocess", f"data-{DATASET}", short("data"))
    stage(root, data, 60.0, {"dataset": DATASET})
    teacher_model = ("preprocess", f"model-{TEACHER}", short("teacher"))
    stage(root, teacher_model, 240.0, {"model": TEACHER})
    difficulty = {name: rng.beta(2, 2, size=150) for name in BENCHMARKS}
    key = ("evaluation", f"quick-{TEACHER}", short("teacher-eval"))
    labels = {"role": "teacher", "teacher": TEACHER, "dataset": DATASET, "suite": "quick"}
    folder = stage(root, key, 1500.0, labels, [teacher_model, data])
    write_items(folder, {n: np.clip(0.7 + 0.3 * d, 0, 1) for n, d in difficulty.items()})
    write_inference(folder, 0.20)
    artifacts = {}
    for pipeline in pipelines:
        made, joules, _, _ = PIPELINES[pipeline]
        if made:
            artifacts[pipeline] = (made, f"{TEACHER}-{DATASET}", short(made))
            stage(root, artifacts[pipeline], joules, {"teacher": TEACHER, "dataset": DATASET}, [teacher_model, data])
    for student in students:
        training, evaluation, score, params, j_token = STUDENTS[student]
        model = ("preprocess", f"model-{student}", short(student))
        stage(root, model, 30.0, {"model": student}, [teacher_model])
        for pipeline in pipelines:
            made, _, cost, gain = PIPELINES[pipeline]
            for index, setting in enumerate((sweep or {}).get(pipeline, [{}])):
                for seed in seeds:
                    group = short(pipeline, student, setting)
                    labels = {
                        "teacher": TEACHER,
                        "dataset": DATASET,
                        "pipeline": pipeline,
                        "student": student,
                        "hyperparameters": setting,
                        "seed": seed,
                        "run": short(group, seed),
                        "group": group,
                        "role": "student",
                        "baseline_group": short("sft", student, {}),
                        "student_params": params,
                    }
                    name = f"{DATASET}-{pipeline}-{student}-s{seed}"
                    key = ("student_training", name, short(group, seed))
                    spent = training * cost * float(1 + noise * rng.standard_normal())
                    consumes = [data, model, *([artifacts[pipeline]] if made else [])]
                    folder = stage(root, key, spent, labels, consumes, wasted=spent * 0.1 if seed else 0.0, seed=seed)
                    write_trajectory(folder, spent, 8.0, 2.0 / gain + 0.05 * index)
                    gains = np.clip(score * gain * (0.6 + 0.8 * rng.random(3)).mean(), 0, 1)
                    evaluated = ("evaluation", f"quick-{name}", short("eval", group, seed))
                    folder = stage(root, evaluated, evaluation, {**labels, "suite": "quick"}, [key, data], seed=seed)
                    write_items(
                        folder,
                        {
                            n: np.clip(gains * (0.5 + d) + 0.05 * rng.standard_normal(len(d)), 0, 1)
                            for n, d in difficulty.items()
                        },
                    )
                    write_inference(folder, j_token * float(1 + 0.02 * rng.standard_normal()))
    return root
