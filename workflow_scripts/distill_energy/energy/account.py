"""From readings to joules. Pure functions; the only place where readings are integrated.

A device's readings are (t, counter, power): monotonic seconds, counter in device counts, power in W; None where a
value could not be read. Gaps above ``GAP`` intervals are bounded, not trusted.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GAP = 3  # intervals; a longer distance between readings is a gap
REFRESH_S = 0.1  # how often NVML's energy counter moves (measured on Volta to Hopper: 20 to 100 ms)
STALL = 3  # intervals (and at least 2 s) without a move of the counter, under load, before it is called stalled
AVERAGE_S = 1.0  # what a power reading is the mean of, where the driver averages (Ampere to Hopper)
SIGMAS = 3.0  # standard errors by which the sum of instantaneous readings may miss the counter
JUMP = 3.0  # times the most that a GPU may draw: a counter that moves more has jumped
DISAGREE, DISPUTED = 0.02, 0.05

Sample = tuple[float, float | None, float | None]


@dataclass
class Energy:
    """Energy of one device over the window of its readings. ``curve_*``: cumulative J at reading times."""

    gross_j: float | None = None
    error_j: float | None = None
    method: str | None = None
    crosscheck_j: float | None = None
    crosscheck_method: str | None = None
    reason: str | None = None
    flags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    curve_t: list[float] = field(default_factory=list)
    curve_j: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of readings that counted

    def part(self, share: float) -> Energy:
        """The same with every joule times ``share``."""
        known = {name: getattr(self, name) for name in ("gross_j", "error_j", "crosscheck_j")}
        scaled = {name: None if value is None else share * value for name, value in known.items()}
        return dataclasses.replace(self, **scaled, curve_j=[share * value for value in self.curve_j])

    def at(self, t: float) -> float:
        """Cumulative J at ``t``, linear between readings, constant outside them."""
        times, joules = self.curve_t, self.curve_j
        if t <= times[0]:
            return joules[0]
        if t >= times[-1]:
            return joules[-1]
        right = bisect.bisect_right(times, t)
        t0, t1 = times[right - 1], times[right]
        return joules[right - 1] + (joules[right] - joules[right - 1]) * (t - t0) / (t1 - t0)


def trapezoid(samples: Sequence[tuple[float, float]], interval_s: float, cap_w: float) -> tuple[float, float]:
    """Integral of power in J and a half-width bound on it.

    Between two readings h apart the energy of a power that moves monotonically lies within h·|p1−p0|/2 of the
    trapezoid. Across a gap the power may have been anything from 0 to ``cap_w``: the bound is the larger distance
    from the trapezoid's mean to those.
    """
    joules, error = [], []
    for (t0, p0), (t1, p1) in itertools.pairwise(samples):
        part, bound = _piece(t1 - t0, p0, p1, interval_s, cap_w)
        joules.append(part)
        error.append(bound)
    return math.fsum(joules), math.fsum(error)


def _piece(h: float, p0: float, p1: float, interval_s: float, cap_w: float) -> tuple[float, float]:
    mean = (p0 + p1) / 2
    if h > GAP * interval_s:
        return mean * h, h * max(cap_w - mean, mean)
    return mean * h, h * abs(p1 - p0) / 2


def gpu_energy(
    samples: Sequence[Sample],
    interval_s: float,
    unit: float = 1e-3,
    limit_w: float | None = None,
    power_kind: str | None = None,
    vendor: str = "nvml",
    span: int | None = None,
) -> Energy:
    """Energy of a GPU: its counter where it has one, the trapezoid of power otherwise and as a cross-check.

    Between two readings of the counter its difference is the energy, gaps included. Where the counter went back (a
    reset) or stood still under load, the power's trapezoid stands in for that stretch, bounded. Null if the device
    was lost before the window's end (nothing is known of the rest), the reason saying what it drew until then.
    ``power_kind``: ``average`` or ``instant`` where the driver says which its power is. ``vendor``: the interface, as
    the methods are named. ``span``: counts after which the counter starts again from 0, where it is known.
    """
    start, end = samples[0][0], samples[-1][0]
    power = [(t, p) for t, _, p in samples if p is not None]
    counter = [(t, c) for t, c, _ in samples if c is not None]
    result = Energy(times=[t for t, c, p in samples if c is not None or p is not None])
    if not result.times:
        result.reason = "no reading succeeded"
        return result
    cap = max([p for _, p in power] + [limit_w or 0.0])
    result.method = f"{vendor}_counter" if counter else f"{vendor}_power_integral"
    use_counter = bool(counter)
    if use_counter and not power and counter[-1][0] - counter[0][0] > 2.0 and len({c for _, c in counter}) == 1:
        # A virtual GPU's counter may stand at 0 for ever. Without power there is nothing to tell that from idling.
        result.method, result.reason = None, "the energy counter does not move, and there is no power reading"
        result.flags.append("counter_stalled")
        return result
    if use_counter:
        curve, error = _counter_curve(counter, power, interval_s, unit, cap, result, limit_w, span)
    else:
        curve, error = _power_curve(power, interval_s, cap)
    head, tail = curve[0][0] - start, end - curve[-1][0]
    if tail > GAP * interval_s or head > GAP * interval_s:
        when = (
            f"lost {end - curve[-1][0]:.1f} s before the end" if tail >= head else f"not read in the first {head:.1f} s"
        )
        result.flags.append("lost_device")
        result.reason = f"{when}; {curve[-1][1]:.1f} J were counted in between"
        result.curve_t, result.curve_j = [t for t, _ in curve], [j for _, j in curve]
        return result
    curve, edge_error = _edges(curve, power, start, end, cap)
    result.curve_t, result.curve_j = [t for t, _ in curve], [j for _, j in curve]
    result.gross_j, result.error_j = curve[-1][1], error + edge_error
    if use_counter and len(power) > 1:
        _crosscheck(result, power, start, power_kind, vendor)
    return result


def _power_curve(power: list[tuple[float, float]], interval_s: float, cap: float):
    curve, error = [(power[0][0], 0.0)], []
    total = 0.0
    carry = 0.0  # Kahan: a day of 0.5 s steps adds up exactly
    for (t0, p0), (t1, p1) in itertools.pairwise(power):
        part, bound = _piece(t1 - t0, p0, p1, interval_s, cap)
        y = part - carry
        new = total + y
        carry, total = (new - total) - y, new
        curve.append((t1, total))
        error.append(bound)
    return curve, math.fsum(error)


def _counter_curve(
    counter, power, interval_s: float, unit: float, cap: float, result: Energy, limit_w: float | None, span: int | None
):
    """Cumulative J over the counter's readings, with resets and stalls bridged by the power."""
    base_curve, _ = _power_curve(power, interval_s, cap) if power else ([], 0.0)
    reference = Energy(curve_t=[t for t, _ in base_curve], curve_j=[j for _, j in base_curve])

    def by_power(t0: float, t1: float) -> float | None:
        return reference.at(t1) - reference.at(t0) if reference.curve_t else None

    stalls = _stalls(counter, by_power, interval_s)
    counts = 0  # integers: exact over any length
    bridged: list[float] = []
    errors: list[float] = []
    curve = [(counter[0][0], 0.0)]
    index = 0
    while index < len(counter) - 1:
        stop = stalls.get(index, index + 1)
        (t0, c0), (t1, c1) = counter[index], counter[stop]
        delta = unwrapped(c1 - c0, span, JUMP * (limit_w or cap) * (t1 - t0 + REFRESH_S) / unit)
        expected = by_power(t0, t1)
        if delta < 0:
            result.flags.append("counter_reset")
            bridged.append(expected or 0.0)
            errors.append((t1 - t0) * cap)
        elif limit_w and delta * unit > JUMP * limit_w * (t1 - t0 + REFRESH_S):
            result.flags.append("counter_jumped")
            result.notes.append(
                f"counter jumped by {delta * unit:.0f} J in {t1 - t0:.1f} s; power was integrated instead"
            )
            bridged.append(expected or 0.0)
            errors.append((t1 - t0) * cap)
        elif stop > index + 1 and expected is not None and delta * unit < 0.5 * expected:
            result.flags.append("counter_stalled")
            result.notes.append(f"counter stood still for {t1 - t0:.1f} s; power was integrated instead")
            bridged.append(expected)
            errors.append(abs(expected - delta * unit))
        else:
            counts += delta
        index = stop
        curve.append((t1, counts * unit + math.fsum(bridged)))
    if power:
        errors.append(REFRESH_S * (power[0][1] + power[-1][1]))
    else:
        errors.append(2 * REFRESH_S * cap)
    return curve, math.fsum(errors) + 2 * unit


def unwrapped(delta: int, span: int | None, most: float) -> int:
    """A step of a counter; one back that a wrap after ``span`` counts explains within ``most`` counts is undone."""
    return delta + span if delta < 0 and span and delta + span <= most else delta


def _stalls(counter, by_power, interval_s: float) -> dict[int, int]:
    """Stretches in which the counter stood still under load: first index -> index of the reading that ends it."""
    found, index = {}, 0
    while index < len(counter) - 1:
        stop = index
        while stop < len(counter) - 1 and counter[stop + 1][1] == counter[index][1]:
            stop += 1
        length = counter[stop][0] - counter[index][0]
        if length > max(STALL * interval_s, 2.0):
            expected = by_power(counter[index][0], counter[stop][0])
            if expected is not None and expected > 1.0 * length:  # more than 1 W
                found[index] = min(stop + 1, len(counter) - 1)
                stop = found[index]
        index = max(stop, index + 1)
    return found


def _edges(curve, power, start: float, end: float, cap: float):
    """Extend the curve to the window's edges at the nearest power, bounded."""
    error = 0.0
    head, tail = curve[0][0] - start, end - curve[-1][0]
    first = power[0][1] if power else 0.0
    last = power[-1][1] if power else 0.0
    if head > 0:
        curve = [(start, 0.0), *((t, j + first * head) for t, j in curve)]
        error += head * max(cap - first, first)
    if tail > 0:
        curve = [*curve, (end, curve[-1][1] + last * tail)]
        error += tail * max(cap - last, last)
    return curve, error


def _crosscheck(result: Energy, power, start: float, power_kind: str | None, vendor: str) -> None:
    """Compare the counter with the power, like with like.

    On many cards a power reading is the mean of the last second (NVML field 185), so that its integral lags at every
    edge of the load: -3.7% for a step of 12 s, with both sensors right. Such readings are compared with the counter's
    own increase over the same second, instantaneous ones with the counter between the same moments. Which of the two a
    driver gives is told by its name (fields 185 and 186), else seen in the shape of the curve, whatever its scale.
    """
    windows = {"average": (AVERAGE_S,), "instant": (0.0,)}.get(power_kind, (0.0, AVERAGE_S))
    found = [alike for window in windows if (alike := _alike(result, power, start, window)) is not None]
    if not found:
        return
    best = min(found, key=lambda alike: alike.misfit)
    ours, theirs = best.counter_j, best.power_j
    result.crosscheck_method = f"{vendor}_power_average" if best.window else f"{vendor}_power_integral"
    if power_kind is not None:
        result.crosscheck_method = f"{vendor}_field_{power_kind}"
    result.crosscheck_j = result.gross_j * theirs / ours if ours > 0 else theirs
    larger = max(ours, theirs)
    difference = abs(ours - theirs) - best.slack
    if larger > 0 and difference > DISAGREE * larger:
        share = abs(ours - theirs) / larger
        result.flags.append("disputed" if difference > DISPUTED * larger else "counter_power_differ")
        result.notes.append(f"counter and power differ by {100 * share:.1f}%")
        # one of the two is wrong, and nothing says which
        result.error_j = max(result.error_j, abs(result.gross_j - result.crosscheck_j))


@dataclass(frozen=True)
class _Alike:
    """Counter and power over one stretch, the power taken as the mean of the last ``window`` seconds (0: as it is).

    ``slack``: joules that the counter's refresh alone explains, and, of instantaneous readings, three standard errors
    of their sum: each is one draw of what the power was since the one before; ``misfit``: 1 − cos² of the two curves.
    """

    window: float
    counter_j: float
    power_j: float
    slack: float
    misfit: float


def _alike(result: Energy, power, start: float, window: float) -> _Alike | None:
    """None where less than two readings, or too short a stretch, have their window within the measurement."""
    readings = [(t, p) for t, p in power if t - window >= start - 1e-9]
    if len(readings) < 2 or (window and readings[-1][0] - readings[0][0] < window):
        return None
    steps = [t1 - t0 for (t0, _), (t1, _) in itertools.pairwise(readings)]
    theirs = [(p0 + p1) / 2 for (_, p0), (_, p1) in itertools.pairwise(readings)]
    if window:
        means = [(result.at(t) - result.at(t - window)) / window for t, _ in readings]
        ours = [(a + b) / 2 for a, b in itertools.pairwise(means)]
    else:
        ours = [
            (result.at(t1) - result.at(t0)) / max(t1 - t0, 1e-9) for (t0, _), (t1, _) in itertools.pairwise(readings)
        ]
    scatter = 0.0
    if not window:
        off = [(b - a) * h for a, b, h in zip(ours, theirs, steps, strict=True)]
        middle = math.fsum(off) / len(off)
        # less what the counter's own steps scatter (uniform, at both ends), which cancels in the sum; 1.5: for safety
        steps_j2 = [1.5 * (REFRESH_S * max(p0, p1)) ** 2 / 6 for (_, p0), (_, p1) in itertools.pairwise(readings)]
        spread = math.fsum((value - middle) ** 2 for value in off) - math.fsum(steps_j2)
        # a reading counts in the interval before and after it: the sum's variance is twice that of the terms
        scatter = SIGMAS * math.sqrt(2 * max(0.0, spread))
    size = math.fsum(a * a for a in ours) * math.fsum(b * b for b in theirs)
    misfit = 1 - math.fsum(a * b for a, b in zip(ours, theirs, strict=True)) ** 2 / size if size > 0 else 1.0
    return _Alike(
        window,
        math.fsum(a * h for a, h in zip(ours, steps, strict=True)),
        math.fsum(b * h for b, h in zip(theirs, steps, strict=True)),
        REFRESH_S * (readings[0][1] + readings[-1][1]) + scatter,
        round(misfit, 6),
    )


def rapl_energy(
    samples: Sequence[Sample],
    interval_s: float,
    range_uj: int | None,
    limit_w: float,
    unit: float = 1e-6,
    shares: Mapping[float, float] | None = None,
) -> Energy:
    """Energy of a RAPL zone in J: differences of its counter, a wrap adding the range, as exact integers.

    A difference that no wrap explains within ``limit_w`` is a reset (suspend, driver reload): that stretch is bridged
    with the mean power of the rest, bounded. A gap so long that more than one wrap fits makes the energy ambiguous:
    the smallest is taken and the bound says how many more fit. ``shares``: by reading time, the part of the energy
    since the reading before that belongs to this stage (1 where it is not named).
    """
    counter = [(t, c) for t, c, _ in samples if c is not None]
    result = Energy(times=[t for t, _ in counter], method="rapl")
    if len(counter) < 1:
        result.method, result.reason = None, "no reading succeeded"
        return result
    start, end = samples[0][0], samples[-1][0]
    if end - counter[-1][0] > GAP * interval_s or counter[0][0] - start > GAP * interval_s:
        result.flags.append("lost_device")
        result.reason = "the counter could not be read in a part of the window"
        return result
    total, divided, resets, error = 0, [], [], 0.0
    curve: list[list[float]] = [[counter[0][0], 0.0]]
    for (t0, c0), (t1, c1) in itertools.pairwise(counter):
        delta, h = c1 - c0, t1 - t0
        most = limit_w * max(h, interval_s) / unit  # counts
        if delta < 0 and range_uj:
            delta += range_uj
        if delta < 0 or delta > most:
            result.flags.append("counter_reset")
            resets.append((len(curve), h))
            delta = 0
        elif range_uj and (fit := int((most - delta) // range_uj)) > 0 and h > GAP * interval_s:
            result.flags.append("wraps_ambiguous")
            error += fit * range_uj * unit
        share = (shares or {}).get(t1, 1.0)
        if share == 1.0:
            total += delta  # integers: exact over any number of wraps
        else:
            divided.append(delta * unit * share)
        curve.append([t1, total * unit + math.fsum(divided)])
    counted = total * unit + math.fsum(divided)
    known = sum(t1 - t0 for (t0, _), (t1, _) in itertools.pairwise(counter)) - sum(h for _, h in resets)
    mean = counted / known if known > 0 else 0.0
    for index, h in resets:
        for point in curve[index:]:
            point[1] += mean * h
        error += h * max(limit_w - mean, mean)
    head, tail = counter[0][0] - start, end - counter[-1][0]
    curve, edge_error = _edges([tuple(p) for p in curve], [(start, mean), (end, mean)], start, end, limit_w)
    result.curve_t, result.curve_j = [t for t, _ in curve], [j for _, j in curve]
    result.gross_j = counted if not resets and head <= 0 and tail <= 0 else curve[-1][1]
    # the counter moves every millisecond
    result.error_j = error + edge_error + 2e-3 * mean + 2 * unit
    return result


def node_energy(samples: Sequence[Sample], start: float, end: float) -> Energy:
    """Energy of a whole node in J over [start, end] from the power readings of an outside meter, which have a beat of
    their own: the trapezoid between them, bounded as a GPU's. Null where they do not reach the window's edges within
    ``GAP`` of their own intervals."""
    power = sorted({(t, p) for t, _, p in samples if p is not None})
    result = Energy(times=[t for t, _ in power], method="node_power_integral")
    if len(power) < 2:
        result.method, result.reason = None, f"{len(power)} readings of the node's meter: at least 2 are needed"
        result.flags.append("node_gap")
        return result
    beat = max(statistics.median(b - a for (a, _), (b, _) in itertools.pairwise(power)), 1.0)
    cap = 2 * max(p for _, p in power)
    head, tail = power[0][0] - start, end - power[-1][0]
    if head > GAP * beat or tail > GAP * beat:
        result.method, result.flags = None, ["node_gap"]
        last = power[-1][0] - start
        result.reason = f"the node's readings go from {head:.1f} to {last:.1f} s of a window of {end - start:.1f} s"
        return result
    curve, _ = _power_curve(power, beat, cap)
    whole = Energy(curve_t=[t for t, _ in curve], curve_j=[j for _, j in curve])
    inside = [start, *(t for t, _ in power if start < t < end), end]
    base = whole.at(start) - power[0][1] * max(0.0, head)
    result.curve_t = inside
    result.curve_j = [
        whole.at(t) - base + power[-1][1] * max(0.0, t - power[-1][0]) - power[0][1] * max(0.0, power[0][0] - t)
        for t in inside
    ]
    result.gross_j = result.curve_j[-1]
    pieces = [_piece(t1 - t0, p0, p1, beat, cap)[1] for (t0, p0), (t1, p1) in itertools.pairwise(power)]
    edges = [
        max(0.0, head) * max(cap - power[0][1], power[0][1]),
        max(0.0, tail) * max(cap - power[-1][1], power[-1][1]),
    ]
    result.error_j = math.fsum([*pieces, *edges])
    if any(t1 - t0 > GAP * beat for (t0, _), (t1, _) in itertools.pairwise(power)):
        result.flags.append("node_gap")
    return result


def estimate_energy(
    samples: Sequence[Sample],
    method: str,
    checks: Sequence[tuple[float, float]] = (),
    end: float | None = None,
    late_s: float = math.inf,
) -> Energy:
    """A running total that something else keeps (J). No bound is known for an estimate.

    ``checks``: the same model over the CPU time that the kernel kept, (t, J), compared over their own span. An
    estimator that fell silent more than ``late_s`` before ``end`` leaves the rest unknown: null.
    """
    points = [(t, c) for t, c, _ in samples if c is not None]
    result = Energy(times=[t for t, _ in points], method=method)
    if not points:
        result.method, result.reason = None, "no estimate was made"
        return result
    base, carried, previous = points[0][1], 0.0, points[0][1]
    for t, c in points:
        if c < previous:  # the estimator was started again
            carried += previous - base
            base = 0.0
        previous = c
        if result.curve_t and t <= result.curve_t[-1]:
            result.curve_j[-1] = carried + c - base
            continue
        result.curve_t.append(t)
        result.curve_j.append(carried + c - base)
    result.gross_j = result.curve_j[-1]
    if end is not None and end - points[-1][0] > late_s:
        result.flags.append("lost_device")
        result.reason = f"silent {end - points[-1][0]:.1f} s before the end; {result.gross_j:.1f} J until then"
        result.gross_j = None
        return result
    if len(checks) > 1:
        _check_estimate(result, checks)
    return result


def _check_estimate(result: Energy, checks: Sequence[tuple[float, float]]) -> None:
    """Compare the estimate with the same model over the kernel's CPU time; add what the estimate missed.

    CodeCarbon sees a process only between two of its samples. Processes that ended are missing, and a stage that
    starts many short ones seems to cost nothing; the kernel kept their CPU time.
    """
    (t0, j0), (t1, j1) = checks[0], checks[-1]
    span, seen, known = t1 - t0, result.at(t1) - result.at(t0), max(0.0, j1 - j0)
    result.crosscheck_j, result.crosscheck_method = known, "cpu_time_tdp"
    missing = known - seen
    if abs(missing) <= max(DISPUTED * max(known, seen), 0.1 * span):
        return
    if missing < 0:
        # More than the CPU time allows by the very same model: a sample that cannot be (a clock that stood, a process
        # seen twice). The bound is taken, and the curve pressed under it.
        result.flags.append("disputed")
        result.notes.append(
            f"CodeCarbon says {seen:.1f} J, its model over the kernel's CPU time {known:.1f} J; the latter is counted"
        )
        bound = Energy(curve_t=[t for t, _ in checks], curve_j=[j - j0 for _, j in checks])
        base = result.at(t0)
        pressed = (min(j - base, bound.at(t)) for t, j in zip(result.curve_t, result.curve_j, strict=True))
        result.curve_j = list(itertools.accumulate(pressed, max))
        result.gross_j = result.curve_j[-1] = known
        return
    result.flags.append("short_processes")
    result.notes.append(f"{missing:.1f} J of processes that ended between two of CodeCarbon's samples were added")
    lag = Energy(curve_t=[t for t, _ in checks], curve_j=[j - j0 - (result.at(t) - result.at(t0)) for t, j in checks])
    moved = itertools.accumulate((j + lag.at(t) for t, j in zip(result.curve_t, result.curve_j, strict=True)), max)
    result.curve_j = list(moved)
    result.gross_j = result.curve_j[-1] - result.curve_j[0]


@dataclass(frozen=True)
class Timing:
    """Sampling as it was: seconds, and the share of the window in gaps no longer than ``GAP`` intervals."""

    median_s: float | None
    largest_s: float | None
    gaps: int
    coverage: float | None


def timing(times: Sequence[float], start: float, end: float, interval_s: float) -> Timing:
    """Quality of a series of reading times within the window [start, end]."""
    inside = sorted({start, end, *(t for t in times if start <= t <= end)})
    steps = [b - a for a, b in itertools.pairwise(inside)]
    between = [b - a for a, b in itertools.pairwise(sorted(times))]
    window = end - start
    long = [step for step in steps if step > GAP * interval_s]
    return Timing(
        median_s=statistics.median(between) if between else None,
        largest_s=max(steps) if steps else None,
        gaps=len(long),
        coverage=1 - math.fsum(long) / window if window > 0 else None,
    )
