"""Quality Q = mean over benchmarks of score_i / score_teacher, with an interval over items and seeds.

A benchmark that failed or is absent makes Q null and is named. A benchmark on which the teacher is not above chance is
``unusable``: its ratio means nothing, so Q is null unless the configuration drops such benchmarks by name. Q may
exceed 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.types as kinds

from ..evaluate.score import Score, above_chance
from ..ledger.tables import rows_of, table_of
from .intervals import shared_variance, standard_error, t_quantile


@dataclass(frozen=True)
class Quality:
    """Q of a group of runs. ``low``/``high`` None: no interval, for ``reason``. ``by_benchmark``: mean ratio of
    each."""

    value: float | None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    reason: str | None = None
    dropped: tuple[str, ...] = ()
    by_benchmark: Mapping[str, float] = field(default_factory=dict)
    per_seed: tuple[float | None, ...] = ()
    items_low: float | None = None  # one seed: the spread over items alone
    items_high: float | None = None
    seed_sd: float | None = None  # of Q between seeds, this group's own or pooled over several
    seed_df: float = 0.0
    replicates: Any = field(default=None, repr=False, compare=False)  # of Q over items drawn anew, shape (draws,)


class Items:
    """Scores of a benchmark's items, sorted by id: one shared tuple of ids and an array, so that thousands fit."""

    __slots__ = ("ids", "values")

    def __init__(self, ids: tuple[str, ...], values) -> None:
        self.ids = ids  # sorted
        self.values = np.asarray(values, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.ids)


_ORDERS: dict[tuple[str, ...], tuple[tuple[str, ...], Any]] = {}
_SORTED: dict[tuple[str, ...], tuple[str, ...]] = {}


def _shared(ids: tuple[str, ...]) -> tuple[tuple[str, ...], Any]:
    """(sorted ids, the order that sorts them), one object for all models that were asked the same items."""
    if ids not in _ORDERS:
        import numpy as np

        order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.intp)
        ordered = tuple(ids[i] for i in order)
        _ORDERS[ids] = _SORTED.setdefault(ordered, ordered), order
    return _ORDERS[ids]


def _items(score: Score) -> Items | None:
    if score.items is None or isinstance(score.items, Items):
        return score.items

    ids, order = _shared(tuple(score.items))
    return Items(ids, np.array(list(score.items.values()))[order])


SCORE_COLUMNS = ("benchmark", "kind", "in_quality", "score", "stderr", "chance", "n", "status", "reason")
ITEM_COLUMNS = ("benchmark", "item_id", "score")


def read_scores(folder: str | Path, items: bool = True) -> dict[str, Score]:
    """Scores of an evaluation artifact's benchmarks of Q. A missing or unreadable file gives an empty mapping."""
    rows = rows_of(f"{folder}/scores.parquet", SCORE_COLUMNS)
    if rows is None:
        return {}
    by_item = _read_items(f"{folder}/items.parquet") if items else {}
    return {
        row["benchmark"]: Score(
            row["benchmark"],
            row.get("score"),
            row.get("stderr"),
            row.get("chance"),
            row.get("n"),
            row.get("status") or "ok",
            row.get("reason"),
            by_item.get(row["benchmark"]),
        )
        for row in rows
        if row.get("in_quality") is not False and row.get("kind") != "inference"
    }


#: Id columns seen → (benchmark, rows, Items of which the values are to be set): models of a suite answer the same
# items.
_LAYOUTS: dict[tuple[bytes | None, ...], list[tuple[str, Any, tuple[str, ...]]]] = {}


def _read_items(path: str | Path) -> dict[str, Items]:
    table = table_of(path, ITEM_COLUMNS, ["benchmark"])
    if table is None or not table.num_rows or table.num_columns < len(ITEM_COLUMNS):
        return {}

    names, ids, scores = (table.column(c).combine_chunks() for c in ITEM_COLUMNS)
    values = scores.to_numpy(zero_copy_only=False).astype(np.float64)
    plain = kinds.is_string(ids.type) and not scores.null_count and not np.isnan(values).any()
    buffers = [*names.indices.buffers(), *ids.buffers()]
    key = (*(b and b.to_pybytes() for b in buffers), ",".join(map(str, names.dictionary.to_pylist())).encode())
    if not plain or key not in _LAYOUTS:
        wanted = np.flatnonzero(~np.isnan(values))
        groups: dict[str, list[int]] = {}
        texts, labels = [str(i) for i in ids.to_pylist()], names.to_pylist()
        for row in wanted:
            groups.setdefault(labels[row], []).append(int(row))
        layout = []
        for name, rows in groups.items():
            ordered, order = _shared(tuple(texts[r] for r in rows))
            layout.append((name, np.array(rows)[order], ordered))
        if not plain:
            return {name: Items(ordered, values[rows]) for name, rows, ordered in layout}
        _LAYOUTS[key] = layout
    return {name: Items(ordered, values[rows]) for name, rows, ordered in _LAYOUTS[key]}


def usable_benchmarks(
    teacher: Mapping[str, Score], expected: Sequence[str] | None, drop_unusable: bool
) -> tuple[list[str], list[str], str | None]:
    """(benchmarks of Q, those dropped by rule, why Q is null). ``expected`` None: every benchmark of the teacher."""
    names = list(expected) if expected is not None else sorted(teacher)
    if not names:
        return [], [], "no benchmark was evaluated"
    used, dropped = [], []
    for name in names:
        score = teacher.get(name)
        if score is None:
            return [], dropped, f"the teacher has no result on {name}"
        if score.status == "failed" or (score.score is None and score.status == "ok"):
            return [], dropped, f"{name} failed for the teacher ({score.reason or 'no reason given'})"
        if score.status == "unusable" or not above_chance(score):
            if not drop_unusable:
                return [], dropped, f"{name} is unusable: the teacher is not above chance on it"
            dropped.append(name)
        else:
            used.append(name)
    return (used, dropped, None) if used else ([], dropped, "no benchmark on which the teacher is above chance")


def quality_of(
    runs: Sequence[Mapping[str, Score]],
    teacher: Mapping[str, Score],
    *,
    expected: Sequence[str] | None = None,
    drop_unusable: bool = False,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    salt: str = "",
) -> Quality:
    """Q over the seeds of a group.

    ``runs``: by seed, the scores of one student. Benchmarks weigh the same. The interval joins the spread between seeds
    (Student's t; ``pool`` shares it between groups) and a bootstrap over items: the same items for the teacher and
    every seed, so that an item's difficulty cancels. A benchmark without item scores is drawn from a normal with its
    standard error. The items drawn depend on ``seed`` and the benchmark alone, so that the replicates of two groups are
    paired; ``salt`` (the group's name) parts what belongs to a group.
    """
    used, dropped, why = usable_benchmarks(teacher, expected, drop_unusable)
    if why:
        return Quality(None, seeds=len(runs), reason=why, dropped=tuple(dropped))
    if not runs:
        return Quality(None, reason="no evaluation of this student", dropped=tuple(dropped))
    for run in runs:
        for name in used:
            score = run.get(name)
            if score is None:
                return Quality(None, seeds=len(runs), reason=f"{name} is missing", dropped=tuple(dropped))
            if score.score is None or score.status == "failed":
                reason = f"{name} failed ({score.reason or 'no reason given'})"
                return Quality(None, seeds=len(runs), reason=reason, dropped=tuple(dropped))
    ratios = {name: [run[name].score / teacher[name].score for run in runs] for name in used}
    per_seed = tuple(math.fsum(r[i] for r in ratios.values()) / len(used) for i in range(len(runs)))
    value = math.fsum(per_seed) / len(per_seed)
    by_benchmark = {name: math.fsum(r) / len(r) for name, r in ratios.items()}
    replicates, spread_known = _replicates(runs, teacher, used, draws, seed, salt)
    common = {
        "seeds": len(runs),
        "dropped": tuple(dropped),
        "by_benchmark": by_benchmark,
        "per_seed": per_seed,
        "replicates": replicates,
    }
    if len(runs) == 1:
        inner = _limits(replicates, confidence) if spread_known else (None, None)
        return Quality(value, reason="one seed gives no interval", items_low=inner[0], items_high=inner[1], **common)
    reason = None if spread_known else "seeds only: an evaluation has neither item scores nor a standard error"
    sd = standard_error(per_seed) * math.sqrt(len(per_seed))
    return _settled(Quality(value, reason=reason, seed_sd=sd, seed_df=len(runs) - 1, **common), confidence)


def _settled(q: Quality, confidence: float) -> Quality:
    """``q`` with the interval of its seeds' spread and its items'."""
    items = t_quantile(confidence, math.inf) * float(np.std(q.replicates))
    half = math.hypot(t_quantile(confidence, q.seed_df) * q.seed_sd / math.sqrt(q.seeds), items)
    return replace(q, low=q.value - half, high=q.value + half)


def pool(qualities: Sequence[Quality], confidence: float = 0.95, level: float = 0.05) -> list[Quality]:
    """The same, with one spread between seeds for all of them, unless Bartlett's test rejects at ``level`` that they
    share it: two seeds alone hardly bound their own. A group of one seed then has an interval too."""
    varied = [q for q in qualities if q.seed_sd]
    found = shared_variance([(q.seed_sd**2, q.seeds - 1) for q in varied], level)
    if found is None:
        return list(qualities)
    variance, df = found
    return [
        q
        if q.value is None or q.replicates is None
        else _settled(replace(q, seed_sd=math.sqrt(variance), seed_df=df, reason=_kept_reason(q)), confidence)
        for q in qualities
    ]


def _kept_reason(q: Quality) -> str | None:
    return None if q.reason == "one seed gives no interval" else q.reason


def _limits(replicates, confidence: float) -> tuple[float, float]:
    """The central interval of replicates, by linear interpolation between order statistics."""
    ordered = np.sort(replicates)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))

    tail = (1 - confidence) / 2
    return at(tail), at(1 - tail)


def difference(
    one: Quality, other: Quality, confidence: float = 0.95
) -> tuple[float | None, float | None, float | None]:
    """ΔQ = Q(one) − Q(other) with its interval from paired replicates: (value, low, high)."""
    if one.value is None or other.value is None:
        return None, None, None
    value = one.value - other.value
    if one.low is None or other.low is None:
        return value, None, None
    parts = [(q.seed_sd**2 / q.seeds, q.seed_df) for q in (one, other)]
    variance = math.fsum(v for v, _ in parts)
    pooled = parts[0][1] == parts[1][1] and one.seed_sd == other.seed_sd
    df = parts[0][1] if pooled or variance == 0 else variance**2 / math.fsum(v**2 / n for v, n in parts)
    items = t_quantile(confidence, math.inf) * float(np.std(one.replicates - other.replicates))
    half = math.hypot(t_quantile(confidence, df) * math.sqrt(variance), items)
    return value, value - half, value + half


def _generator(seed: int, *names: str):
    digest = hashlib.sha256("\x00".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _replicates(runs, teacher, used, draws: int, seed: int, salt: str):
    """Replicates of Q over items drawn anew, shape (draws,), and whether every benchmark had items or an error."""
    n = len(runs)
    total = np.zeros((draws, n))
    known = True
    for name in used:
        models = [teacher[name], *(run[name] for run in runs)]
        drawn, ok = _drawn_scores(models, draws, seed, salt)
        known &= ok
        # A teacher's replicate near zero would explode the ratio; such a benchmark was refused as unusable above.
        total += drawn[:, 1:] / np.maximum(drawn[:, :1], 1e-9)
    per_run = total / len(used)
    return per_run.mean(axis=1), known


def _drawn_scores(models: Sequence[Score], draws: int, seed: int, salt: str):
    """Replicated scores of one benchmark, shape (draws, models; the teacher first), centred on the reported scores."""
    reported = np.array([m.score for m in models], dtype=float)
    items = [_items(m) for m in models]
    if all(i is not None and len(i) >= 2 and i.ids == items[0].ids for i in items):
        table = np.stack([i.values for i in items], axis=1)  # items × models
        return reported + (_resampled(table, draws, seed, models[0].benchmark) - table.mean(axis=0)), True
    shared_rng, own_rng = _generator(seed, models[0].benchmark), _generator(seed, models[0].benchmark, salt)
    errors = np.array([m.stderr if m.stderr is not None else 0.0 for m in models])
    known = all(m.stderr is not None for m in models)
    noise = np.column_stack([shared_rng.standard_normal(draws), own_rng.standard_normal((draws, len(models) - 1))])
    return reported + noise * errors, known


def _resampled(table, draws: int, seed: int, benchmark: str):
    """Means of ``table`` (items × models) over items drawn with replacement, shape (draws, models)."""
    counts = _counts(draws, len(table), seed, benchmark)
    if counts.dtype == np.float32:
        return counts @ table / len(table)
    means = np.empty((draws, table.shape[1]))
    for start in range(0, draws, 250):
        means[start : start + 250] = counts[start : start + 250].astype(np.float32) @ table
    return means / len(table)


@lru_cache(maxsize=32)
def _counts(draws: int, items: int, seed: int, benchmark: str):
    """How often each item is drawn in each replicate, shape (draws, items). Shared by all groups, which pairs them.
    Bytes where there are thousands of items, floats (ready to multiply) where there are few."""
    rng = _generator(seed, benchmark)
    counts = np.empty((draws, items), dtype=np.float32 if items <= 1000 else np.uint8)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, items, size=items), minlength=items)
    return counts
