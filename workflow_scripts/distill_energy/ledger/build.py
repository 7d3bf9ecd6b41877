"""Sidecars and evaluation artifacts from records that others made (a published table, another harness's logs)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..store.atomic import write_parquet, write_text
from ..store.sidecar import (
    ATTEMPT_NAME,
    SIDECAR_NAME,
    Attempt,
    Co2e,
    Component,
    Consumed,
    Energy,
    Hardware,
    Outcome,
    PerToken,
    Quality,
    Sidecar,
    Software,
    Tokens,
    dump,
    total,
)
from .graph import Key

EPOCH = "1970-01-01T00:00:00Z"  # where the source gives no time


def make_attempt(
    components: Sequence[Component],
    *,
    host: str,
    wall_s: float | None = None,
    start_utc: str = EPOCH,
    end_utc: str | None = None,
    outcome: Outcome = "completed",
    reason: str | None = None,
    quality: Quality | None = None,
    tokens: Tokens | None = None,
) -> Attempt:
    """An attempt that somebody else measured, with the given components (joules)."""
    return Attempt(
        id="imported",
        host=host,
        start_utc=start_utc,
        end_utc=end_utc,
        start_mono_s=0.0,
        end_mono_s=wall_s,
        wall_s=wall_s,
        outcome=outcome,
        reason=reason,
        components=list(components),
        quality=quality or Quality(),
        tokens=tokens or Tokens(),
    )


def make_sidecar(
    key: Key,
    components: Sequence[Component],
    *,
    labels: Mapping[str, Any] | None = None,
    consumes: Sequence[Key] = (),
    params: Mapping[str, Any] | None = None,
    wall_s: float | None = None,
    start_utc: str = EPOCH,
    end_utc: str | None = None,
    tokens: Tokens | None = None,
    j_per_token: PerToken | None = None,
    co2e: Co2e | None = None,
    hardware: Hardware | None = None,
    software: Software | None = None,
    quality: Quality | None = None,
    seed: int | None = None,
    wasted_j: float | None = 0.0,
    results: Mapping[str, Any] | None = None,
) -> Sidecar:
    """A sidecar of one completed attempt with the given components (joules)."""
    parts = list(components)
    gross, error, source, reason = total(parts)
    counted = [c for c in parts if c.in_total]
    idle = sum(c.idle_j for c in counted) if counted and all(c.idle_j is not None for c in counted) else None
    hardware = hardware or Hardware(host="unknown")
    tokens = tokens or Tokens()
    attempt = make_attempt(
        parts, host=hardware.host, wall_s=wall_s, start_utc=start_utc, end_utc=end_utc, quality=quality, tokens=tokens
    )
    return Sidecar(
        stage=key[0],
        name=key[1],
        version=key[2],
        recipe=0,
        params=dict(params or {}),
        labels=dict(labels or {}),
        consumes=[Consumed(role=c[0], stage=c[0], name=c[1], version=c[2]) for c in consumes],
        attempts=[attempt],
        energy=Energy(
            components=parts,
            gross_j=gross,
            idle_j=idle,
            wasted_gross_j=wasted_j if gross is not None else None,
            error_j=error,
            source=source,
            reason=reason,
        ),
        quality=quality or Quality(),
        tokens=tokens,
        j_per_token=j_per_token or PerToken(reason="the source gives no token count"),
        co2e=co2e or Co2e(reason="the source names no grid intensity"),
        hardware=hardware,
        software=software or Software(python="unknown"),
        seed=seed,
        results=dict(results or {}),
        created_utc=end_utc or start_utc,
    )


def write_sidecar(root: Path, sidecar: Sidecar) -> Path:
    """Write ``energy.json`` into its folder under ``root``; returns the folder."""
    folder = Path(root) / sidecar.stage / sidecar.name / sidecar.version
    write_text(folder / SIDECAR_NAME, dump(sidecar))
    return folder


def write_attempt(root: Path, key: Key, attempt: Attempt, labels: Mapping[str, Any]) -> Path:
    """Write an attempt that led to no artifact, with what it was meant for; returns its folder."""
    folder = Path(root).joinpath("attempts", *key, attempt.id)
    record = {"labels": dict(labels), "attempt": attempt.model_dump(mode="json")}
    write_text(folder / ATTEMPT_NAME, json.dumps(record, indent=1) + "\n")
    return folder


def write_scores(folder: Path, scores: Sequence[Mapping[str, Any]]) -> None:
    """Write ``scores.parquet``: rows of benchmark, score, stderr, chance, n, status, reason (missing ones null)."""
    fields = {
        "benchmark": pa.string(),
        "score": pa.float64(),
        "stderr": pa.float64(),
        "chance": pa.float64(),
        "n": pa.int64(),
        "status": pa.string(),
        "reason": pa.string(),
    }
    rows = [{name: row.get(name) for name in fields} | {"status": row.get("status", "ok")} for row in scores]
    write_parquet(Path(folder) / "scores.parquet", pa.Table.from_pylist(rows, schema=pa.schema(list(fields.items()))))
