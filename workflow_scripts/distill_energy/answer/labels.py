"""Short names for groups, unique within a summary, for figures and sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

PIPELINE_NAMES = {"sft": "SFT", "kd": "KD", "synthetic": "Synthetic", "lora": "LoRA"}
PIPELINE_NAMES |= {"on_policy": "On-policy", "offline_policy": "Offline policy", "preference": "Preference"}


def pipeline_name(pipeline: str | None) -> str:
    """How a pipeline is written in figures and sentences."""
    return PIPELINE_NAMES.get(pipeline or "", pipeline or "?")


def differing(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """group → text of the hyperparameters that differ between the groups of the same pipeline, student and data set."""
    families: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        families.setdefault((row["teacher"], row["dataset"], row["pipeline"], row["student"]), []).append(row)
    texts = {}
    for members in families.values():
        settings = [_flat(json.loads(m["hyperparameters"] or "{}")) for m in members]
        keys = sorted({k for s in settings for k in s if len({repr(t.get(k)) for t in settings}) > 1})
        for member, setting in zip(members, settings, strict=True):
            texts[member["group"]] = ", ".join(f"{_short(k)}={setting.get(k)}" for k in keys)
    return texts


def _short(key: str) -> str:
    return {"alpha": "α", "temperature": "T"}.get(key, key)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat


def group_labels(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """group → label such as ``KD 12-layer`` or, where needed, ``KD 12-layer (α=0.3)`` or ``KD 12-layer · tulu``."""
    extra = differing(rows)
    many_data = len({r["dataset"] for r in rows}) > 1
    many_teachers = len({r["teacher"] for r in rows if r["teacher"]}) > 1
    labels = {}
    for row in rows:
        label = f"{pipeline_name(row['pipeline'])} {row['student']}"
        if extra[row["group"]]:
            label += f" ({extra[row['group']]})"
        if many_data:
            label += f" · {row['dataset']}"
        if many_teachers and row["teacher"] and row["n_reuse"] is not None:  # it learnt from one
            label += f" · {row['teacher']}"
        labels[row["group"]] = label
    seen: dict[str, int] = {}
    for group, label in labels.items():  # versions of the same settings: tell them apart by a number
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:
            labels[group] = f"{label} #{seen[label]}"
    return labels
