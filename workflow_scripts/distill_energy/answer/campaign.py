"""What a pipeline really spent to arrive at its kept students, and an artifact's balance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ledger.graph import Key
from ..ledger.rows import key_of
from .groups import Group, family
from .intervals import Difference, Spread, difference, t_cdf, t_quantile
from .runs import Row


def campaign(
    rows: Sequence[Row], places: Sequence[Mapping[str, Any]], needed_by: Mapping[Key, set[Key]]
) -> dict[tuple, float | None]:
    """Family (teacher, data set, pipeline, student) → every joule spent on it, None where one is unknown.

    What a kept run bears (own, shared, wasted) is its family's; so are the family's runs that were not kept or are
    listed no more. Of an artifact that only such runs consumed, each of their families bears an equal part; what
    belongs to no family at all is under the key ``()``.
    """
    by_key = {key_of(r): r for r in rows}
    spent: dict[tuple, list[float | None]] = defaultdict(list)
    for item in places:
        key = (item["stage"], item["name"], item["version"])
        if item["run"]:
            owners = [family(by_key[tuple(item["run"].split("/"))])]
        elif (row := by_key.get(key)) is not None and row["student"] is not None and row["pipeline"] is not None:
            owners = [family(row)]
        else:
            owners = sorted({family(by_key[run]) for run in needed_by.get(key, ()) if run in by_key}, key=str) or [()]
        for owner in owners:
            spent[owner].append(None if item["joules"] is None else item["joules"] / len(owners))
    return {owner: None if None in values else math.fsum(values) for owner, values in spent.items()}


@dataclass(frozen=True)
class Balance:
    """What an artifact has brought so far, joules: savings of its kept consumers less its own cost and the selection's.

    ``cost``: the artifact, and the trainings of settings that were not kept; ``saved``: Σ over kept runs of the
    baseline's mean less their own. ``probability``: that ``value`` is positive. ``more``: further reuses, at the mean
    saving, until it is.
    """

    value: float
    cost: float
    saved: float
    baseline: float  # what the same runs cost under the baseline
    consumers: int
    low: float | None = None
    high: float | None = None
    probability: float | None = None
    more: float | None = None


def balance(
    teacher_j: float,
    selection_j: float,
    arms: Sequence[tuple[Sequence[float], Sequence[float]]],
    *,
    teacher_sd_j: float = 0.0,
    spread: Spread | None = None,
    paired: Sequence[Spread | bool | None] = (),
    confidence: float = 0.95,
) -> Balance:
    """The balance of a teacher artifact. ``arms``: for each kept student (its baseline's, its own) training joules.
    ``paired``: for each arm False, or the spread of its pairs of one seed (None where it cannot be pooled).

    A consumer's saving is against the mean of its own baseline's runs, so the variance of a student's sum over its n
    runs is n² times that of the difference of means.
    """
    parts = []
    for number, (base, own) in enumerate(arms):
        pairs = paired[number] if paired else False
        compared = difference(base, own, spread) if pairs is False else difference(base, own, pairs, paired=True)
        parts.append((len(own), compared))
    saved = math.fsum(n * part.value for n, part in parts)
    count = sum(n for n, _ in parts)
    baseline = math.fsum(n * math.fsum(base) / len(base) for (n, _), (base, _) in zip(parts, arms, strict=True))
    value = saved - teacher_j - selection_j
    mean = saved / count if count else 0.0
    more = 0.0 if value >= 0 else -value / mean if mean > 0 else None
    common = {"cost": teacher_j + selection_j, "saved": saved, "baseline": baseline, "consumers": count, "more": more}
    if any(part.se is None for _, part in parts) or not parts:
        return Balance(value, **common)
    variance = math.fsum((n * part.se) ** 2 for n, part in parts) + teacher_sd_j**2
    df = _satterthwaite(parts)
    se = math.sqrt(variance)
    half = t_quantile(confidence, df) * se
    probability = float(value > 0) if se == 0 else t_cdf(value / se, df)
    return Balance(value, low=value - half, high=value + half, probability=probability, **common)


def _satterthwaite(parts: Sequence[tuple[int, Difference]]) -> float:
    terms = [((n * part.se) ** 2, part.df) for n, part in parts if part.se]
    if not terms:
        return math.inf
    total = math.fsum(v for v, _ in terms)
    # Terms that share a pooled spread share its degrees of freedom; Satterthwaite would add them up.
    if len({df for _, df in terms}) == 1:
        return terms[0][1]
    return total**2 / math.fsum(v**2 / df for v, df in terms)


def artifact_of(group: Group) -> tuple[Key, ...]:
    """The teacher artifacts that a group's runs consumed (not those that the students which they start from did)."""
    return tuple(sorted({key_of(row) for run in group.runs for row in run.parts["teacher"]} - _borrowed(group)))


def _borrowed(group: Group) -> set[Key]:
    return {key for run in group.runs for key in run.borrowed}


def continued_j(group: Group, places: Sequence[Mapping[str, Any]], rows: Mapping[Key, Row]) -> float | None:
    """Joules spent on the students that a group's runs start from, beside its own family's: their trainings with what
    was wasted on them, and their shares of what is shared; None where one is unknown. They stand in the campaign of
    their own pipeline as well: the two are alternatives, not parts of one sum."""
    trained = {key for run in group.runs for key in run.continued}
    if not trained:
        return 0.0
    names = {"/".join(key) for key in trained}
    own = ("prerun", "contamination", "evaluation")  # the group's family has its own of these
    found = [rows[key]["total_j"] if key in rows else None for key in trained]
    found += [p["joules"] for p in places if p["run"] in names and p["place"] == "shared" and p["stage"] not in own]
    return None if None in found else math.fsum(found)
