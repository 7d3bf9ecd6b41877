"""How often the answer's intervals hold the truth, by simulation: ``python benchmarks/coverage.py [draws]``.

A study of nine groups (three students, three pipelines) is drawn again and again from known energies; a line a design
and quantity says in what share of the studies the 95 % interval held the true value.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from distill_energy.answer.breakeven import n_star, t_star
from distill_energy.answer.intervals import Spread, mean_interval, pairs_spread, pooled, widened
from distill_energy.answer.quality import difference, pool, quality_of
from distill_energy.evaluate.score import Score

STUDENTS = (1000.0, 2000.0, 3000.0)
SAVING = {"baseline": 1.0, "kd": 0.90, "synthetic": 0.80}
TEACHER = 1300.0
NOISE = 0.03  # relative standard deviation between seeds
DRAWS = 2000


def errors(rng, kind: str, n: int) -> np.ndarray:
    """Relative errors of one group's seeds, of standard deviation ``NOISE``."""
    if kind == "skewed":
        return NOISE * (rng.exponential(size=n) - 1)
    if kind == "correlated":  # half of the variance is the arm's own: a host that warms up through one arm
        return NOISE * math.sqrt(0.5) * (rng.standard_normal(n) + rng.standard_normal())
    return NOISE * rng.standard_normal(n)


def energies(rng, kind: str, seeds: int, meter: float, saving=SAVING) -> tuple[float, dict, float]:
    """(measured teacher, group → measured training energies, the factor by which the meter is off)."""
    factor = 1 + meter * rng.uniform(-1, 1)
    paired = kind.startswith("paired")
    shared = errors(rng, "normal", seeds) if paired else 0.0
    groups = {}
    for size in STUDENTS:
        for arm, share in saving.items():
            own = errors(rng, kind, seeds) * (0.5 if paired else 1.0)
            groups[size, arm] = (factor * size * share * (1 + own + shared)).tolist()
    return factor * TEACHER, groups, factor


def holds(low, high, truth) -> bool:
    return low is not None and low <= truth and (high is None or truth <= high)


def share(hits: list[bool]) -> str:
    p = float(np.mean(hits))
    return f"{100 * p:5.1f} ± {196 * math.sqrt(p * (1 - p) / len(hits)):.1f} %"


def training(kind: str, seeds: int, meter: float, draws: int, saving=SAVING) -> tuple[str, str, str]:
    """(one-off E, N*, share of N* that is decided) of KD for the middle student."""
    energy, star, decided = [], [], []
    size = STUDENTS[1]
    kept = size * saving["kd"]
    truth = TEACHER / (size - kept) if kept < size else math.inf
    for number in range(draws):
        rng = np.random.default_rng([number, seeds])
        teacher, groups, _ = energies(rng, kind, seeds, meter, saving)
        spread = pairs = pooled(list(groups.values()))
        chosen = kind == "paired, chosen"  # as accounting.paired does
        if chosen:
            arms = [(groups[s, "baseline"], groups[s, a]) for s in STUDENTS for a in saving if a != "baseline"]
            pairs = pairs_spread(arms)
            spread = None if spread is None else Spread(spread.relative, seeds - 1.0)
        own = groups[size, "kd"]
        whole = [teacher + value for value in own]
        estimate = mean_interval(own, 0.95, spread)
        half = 0.0 if estimate.low is None else estimate.high - estimate.value
        mean = math.fsum(whole) / seeds
        total = mean_interval(whole)
        total = total.__class__(mean, mean - half, mean + half, seeds, "t") if half else total
        total = widened(total, meter * mean)
        energy.append(holds(total.low, total.high, TEACHER + kept))
        found = n_star(teacher, groups[size, "baseline"], own, spread=pairs, paired=chosen)
        if found.status == "never":
            star.append(math.isinf(truth))
        else:
            star.append(holds(found.low, found.high, truth))
        decided.append(found.status in ("finite", "never"))
    return share(energy), share(star), share(decided)


def serving(extra: float, ours: float, theirs: float, seeds: int, draws: int) -> str:
    """T* of a student that spent ``extra`` beyond its reference's 1,000 J and serves at ``ours`` against ``theirs``."""
    hits = []
    truth = extra / (theirs - ours)
    for number in range(draws):
        rng = np.random.default_rng([number, seeds, 7])

        def drawn(mean: float, rng=rng) -> list[float]:
            return (mean * (1 + NOISE * rng.standard_normal(seeds))).tolist()

        reference = drawn(1000.0)
        spent = [value - math.fsum(reference) / seeds for value in drawn(1000.0 + extra)]
        found = t_star(spent, drawn(theirs), drawn(ours), reference_spent_j=reference)
        if found.status == "immediate":
            hits.append(truth <= 0 and theirs > ours)
        elif found.status == "never":
            hits.append(theirs <= ours and extra >= 0)
        else:
            hits.append(holds(found.low, found.high, truth))
    return share(hits)


def quality(noise: float, items: int, seeds: int, draws: int) -> tuple[str, str]:
    """(Q, ΔQ against another pipeline) with seeds of relative standard deviation ``noise`` and items of 0 or 1."""
    held, apart = [], []
    teacher, ours, theirs = 0.8, 0.5, 0.45
    for number in range(draws):
        rng = np.random.default_rng([number, items, seeds])
        difficulty = rng.standard_normal(items)

        def scores(p: float, rng=rng, difficulty=difficulty) -> Score:
            """Items of a common difficulty, right with probability ``p`` over all."""
            threshold = -math.sqrt(2) * _probit(p)
            right = (rng.standard_normal(items) + difficulty > threshold).astype(float)
            ids = {str(i): value for i, value in enumerate(right)}
            return Score("b", float(right.mean()), float(right.std(ddof=1) / math.sqrt(items)), 0.0, items, items=ids)

        reference = {"b": scores(teacher)}

        def arm(p: float, salt: str, rng=rng, reference=reference, scores=scores):
            runs = [
                {"b": scores(float(np.clip(p * (1 + noise * rng.standard_normal()), 0.02, 0.98)))} for _ in range(seeds)
            ]
            return quality_of(runs, reference, draws=400, salt=salt)

        levels = (ours, theirs, 0.3, 0.4, 0.55, 0.6, 0.65, 0.7, 0.75)  # nine groups, as in a study
        one, other, *_ = pool([arm(p, str(p)) for p in levels])
        held.append(holds(one.low, one.high, ours / teacher))
        _, low, high = difference(one, other)
        apart.append(holds(low, high, (ours - theirs) / teacher))
    return share(held), share(apart)


def _probit(p: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(p))


def main(draws: int = DRAWS) -> None:
    """Print the table of docs/accounting.md."""
    print("| design | seeds | one-off E | N* | N* decided |\n| --- | --- | --- | --- | --- |")
    near = {**SAVING, "kd": 0.995}
    designs = [("normal", 0.0, SAVING), ("skewed", 0.0, SAVING), ("paired", 0.0, SAVING)]
    designs += [("paired, chosen", 0.0, SAVING), ("correlated", 0.0, SAVING)]
    designs += [("normal", 0.1, SAVING), ("normal", 0.2, SAVING), ("near zero", 0.0, near)]
    for kind, meter, saving in designs:
        name = kind + (f", meter off by up to {100 * meter:.0f} %" if meter else "")
        for seeds in (2, 3, 5):
            found = training("normal" if kind == "near zero" else kind, seeds, meter, draws, saving)
            print(f"| {name} | {seeds} | " + " | ".join(found) + " |", flush=True)
    print("\n| T* | 2 seeds | 3 | 5 |\n| --- | --- | --- | --- |")
    regimes = (("repays", 300.0, 0.05, 0.20), ("near parity", 300.0, 0.19, 0.20), ("starts ahead", -300.0, 0.20, 0.15))
    for name, extra, ours, theirs in regimes:
        print(f"| {name} | " + " | ".join(serving(extra, ours, theirs, seeds, draws) for seeds in (2, 3, 5)) + " |")
    print("\n| Q and ΔQ | 2 seeds | 3 | 5 |\n| --- | --- | --- | --- |")
    few = max(100, draws // 5)
    for noise, items in ((0.02, 150), (0.02, 1500), (0.15, 150), (0.15, 1500)):
        cells = [quality(noise, items, seeds, few) for seeds in (2, 3, 5)]
        label = f"seeds vary by {100 * noise:.0f} %, {items} items"
        print(f"| {label} | " + " | ".join(f"{q}; {d}" for q, d in cells) + " |", flush=True)


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
