"""Break-even: N* (reuses of a teacher artifact), T* (served tokens), and the amortised energy E(N).

N* = E_teacher / (E_student_baseline − E_student_distill); T* = E_extra / (j_ref − j_student). A denominator that is not
positive means *never*: no count exists. Where the interval of the denominator spans zero the answer is *undecided*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .intervals import Spread, fieller, seeds_to_decide, standard_error, t_cdf, t_quantile, welch
from .intervals import difference as mean_difference

Status = Literal["finite", "never", "undecided", "immediate", "until", "unknown"]
JOULES_PER_KWH = 3_600_000.0


@dataclass(frozen=True)
class BreakEven:
    """A break-even point.

    ``value`` is None for *never* and *unknown*, and for *undecided* where the point estimate saves nothing.
    ``high`` None with ``low`` set: no upper limit. Both None: no interval, for ``reason``.
    ``saving`` (with limits) is the denominator, in the unit of the call.
    """

    status: Status
    value: float | None = None
    low: float | None = None
    high: float | None = None
    saving: float | None = None
    saving_low: float | None = None
    saving_high: float | None = None
    probability: float | None = None  # that distilling pays at the real N
    seeds: int | None = None  # of each arm, with which the sign of the saving would be decided (80% power)
    reason: str | None = None


def amortised(teacher: float | None, rest: float | None, n: float) -> float | None:
    """E(N) = E_teacher/N + the rest, in the unit given. ``n`` must be positive."""
    if n <= 0:
        raise ValueError("a reuse count is positive")
    if teacher is None or rest is None:
        return None
    return teacher / n + rest


def _known(values: Sequence[float | None]) -> bool:
    return len(values) > 0 and all(v is not None and math.isfinite(v) for v in values)


def n_star(
    teacher_j: float | None,
    baseline_j: Sequence[float | None],
    distill_j: Sequence[float | None],
    *,
    reuse: int | None = None,
    confidence: float = 0.95,
    teacher_sd_j: float = 0.0,
    spread: Spread | None = None,
    paired: bool = False,
) -> BreakEven:
    """N* with its interval from the training energies of the seeds of both arms (joules).

    ``spread``: the relative spread between seeds pooled over the execution class, where it could be pooled; with
    ``paired`` that of pairs of one seed (see ``intervals.difference``).

    ``teacher_sd_j`` is the standard deviation of the teacher's energy by measurement (it is made once). The interval is
    Fieller's, with Welch's standard error and degrees of freedom for the saving. ``probability`` is that of
    saving ≥ E_teacher/N at the real ``reuse`` count, under the same t distribution.
    """
    if teacher_j is None or not math.isfinite(teacher_j):
        return BreakEven("unknown", reason="the teacher's energy is unknown")
    if not baseline_j:
        return BreakEven("unknown", reason="there is no baseline run of this student and data set")
    if not _known(baseline_j) or not _known(distill_j):
        return BreakEven("unknown", reason="the training energy of a run is unknown")
    difference = mean_difference(baseline_j, distill_j, spread, paired)
    saving = difference.value
    point = teacher_j / saving if saving > 0 else None
    span = difference.interval(confidence)
    if span is None:
        return BreakEven(
            "finite" if saving > 0 else "never",
            point,
            saving=saving,
            reason="one seed gives no interval"
            if saving > 0
            else "training costs no less than the baseline's (one seed)",
        )
    low, high = span
    probability = None
    if reuse:
        need = teacher_j / reuse
        spread = math.hypot(difference.se, teacher_sd_j / reuse)
        gap = saving - need
        probability = float(gap > 0) if spread == 0 else t_cdf(gap / spread, difference.df)
    common = {"saving": saving, "saving_low": low, "saving_high": high, "probability": probability}
    if high <= 0:
        return BreakEven("never", reason="training costs no less than the baseline's", **common)
    if low <= 0:
        # The set of N* compatible with the data is [teacher/high, ∞) and *never*.
        n_low = _ratio_low(teacher_j, saving, teacher_sd_j, difference.se, confidence, difference.df, high)
        seeds = seeds_to_decide(difference, min(len(baseline_j), len(distill_j)), confidence)
        reason = "the interval of the saving spans zero"
        return BreakEven("undecided", point, n_low, None, reason=reason, seeds=seeds, **common)
    quantile = t_quantile(confidence, difference.df)
    ratio = fieller(teacher_j, saving, teacher_sd_j**2, difference.se**2, 0.0, quantile)
    return BreakEven("finite", point, max(ratio.low, 0.0), ratio.high, **common)


def _ratio_low(a: float, b: float, sd_a: float, se_b: float, confidence: float, df: float, high: float) -> float:
    """The lower limit on the positive side where the denominator's sign is open."""
    ratio = fieller(a, b, sd_a**2, se_b**2, 0.0, t_quantile(confidence, df))
    if ratio.kind == "complement" and ratio.high is not None and ratio.high > 0:
        return ratio.high
    return a / high


def t_star(
    extra_j: Sequence[float | None],
    reference_j_per_token: Sequence[float | None],
    student_j_per_token: Sequence[float | None],
    *,
    reference_spent_j: Sequence[float | None] = (),
    confidence: float = 0.95,
) -> BreakEven:
    """T*: tokens to serve until the student's extra energy is repaid by cheaper inference.

    ``extra_j``: by seed, the energy spent on the student beyond the mean of ``reference_spent_j``, the reference's own
    by seed (none: it cost nothing, as a teacher that is there). It may be negative. J/token by seed, both measured.

    *immediate*: the student costs no more and serves for less. *until*: it starts ahead and serves for more, so that it
    is ahead until T* tokens. Every variance enters, the reference's spending too; one number of degrees of freedom, the
    smallest, serves the saving's interval and T*'s alike.
    """
    if not _known(extra_j) or not all(v is not None and math.isfinite(v) for v in reference_spent_j):
        return BreakEven("unknown", reason="the energy spent on the student or on its reference is unknown")
    if not _known(reference_j_per_token) or not _known(student_j_per_token):
        return BreakEven("unknown", reason="J/token was not measured for both the student and its reference")
    difference = welch(reference_j_per_token, student_j_per_token)
    saving, extra = difference.value, math.fsum(extra_j) / len(extra_j)
    samples = [x for x in (extra_j, reference_spent_j) if len(x) > 1]
    enough = difference.se is not None and len(extra_j) > 1 and len(reference_spent_j) != 1
    if not enough:
        return _t_point(extra, saving, "one seed gives no interval")
    df = min(difference.df, *(len(x) - 1 for x in samples))
    var_extra = math.fsum(standard_error(x) ** 2 for x in samples)
    quantile = t_quantile(confidence, df)
    low, high = saving - quantile * difference.se, saving + quantile * difference.se
    common = {"saving": saving, "saving_low": low, "saving_high": high}
    if low <= 0 < high or low < 0 <= high:
        guess = _t_point(extra, saving, "")
        floor = max(extra, 0.0) / high if high > 0 else None
        value = guess.value if guess.status == "finite" else None
        reason = "the interval of j_ref − j_student spans zero"
        return BreakEven("undecided", value, floor, None, reason=reason, **common)
    reach = quantile * math.sqrt(var_extra)
    if saving > 0 and extra + reach <= 0:
        return BreakEven("immediate", 0.0, 0.0, 0.0, reason="the student cost no more than its reference", **common)
    if saving < 0 and extra - reach >= 0:
        reason = "serving the student takes no less energy a token than the reference"
        return BreakEven("never", reason=reason, **common)
    if extra - reach <= 0 <= extra + reach:  # whether it starts ahead is open
        ratio = fieller(extra, saving, var_extra, difference.se**2, 0.0, quantile)
        point = _t_point(extra, saving, "")
        if saving > 0:
            return BreakEven(
                "finite" if extra > 0 else "immediate", max(extra / saving, 0.0), 0.0, ratio.high, **common
            )
        reason = "whether the student cost less than its reference is open, and it serves for more"
        return BreakEven("undecided", point.value, 0.0, ratio.high, reason=reason, **common)
    ratio = fieller(extra, saving, var_extra, difference.se**2, 0.0, quantile)
    status: Status = "finite" if saving > 0 else "until"
    return BreakEven(status, extra / saving, max(ratio.low, 0.0), ratio.high, **common)


def _t_point(extra: float, saving: float, reason: str) -> BreakEven:
    """T* without an interval, for ``reason``."""
    if saving > 0:
        if extra <= 0:
            return BreakEven("immediate", 0.0, saving=saving, reason="the student cost no more than its reference")
        return BreakEven("finite", extra / saving, saving=saving, reason=reason)
    if extra < 0 and saving < 0:
        return BreakEven("until", extra / saving, saving=saving, reason=reason)
    return BreakEven(
        "never", saving=saving, reason="serving the student takes no less energy a token than the reference"
    )


def whole_reuses(value: float | None) -> int | None:
    """The first whole reuse count at which distilling has paid (⌈N*⌉), for sentences."""
    if value is None:
        return None
    return max(1, math.ceil(value - 1e-9))
