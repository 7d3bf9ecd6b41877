"""From journals to attempts, and from attempts to a stage's energy."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..store import sidecar as schema
from . import account, journal
from .health import health, judge
from .identity import alive, idle_name, utc
from .running import in_total

#: Records that the disk refused, by journal: this process knows more than the file says.
UNSAVED: dict[Path, list[dict[str, Any]]] = {}

ESTIMATOR_LATE_S = 10.0  # CodeCarbon measures each second; after so long it is dead, not late
ABANDONED_S = 60.0  # a journal on another host that was not written for so long has no writer any more


def attempts_of(folder: str | Path) -> list[schema.Attempt]:
    """Every attempt recorded under ``folder``, oldest first. Journals that nobody closed are closed here.

    An attempt whose window never began (killed while the meter started) spent nothing that is counted: left out. One
    whose journal is damaged beyond reading spent an unknown energy, with the file's name as the reason.
    """
    found = []
    for path in sorted(Path(folder).glob(f"*/{journal.NAME}")):
        attempt = read_attempt(path)
        if attempt is not None:
            found.append(attempt)
    return sorted(found, key=lambda attempt: attempt.start_utc)


def read_attempt(path: Path) -> schema.Attempt | None:
    """The attempt of one journal; None if its window never began."""
    records, torn = journal.read(path)
    records += UNSAVED.get(path.resolve(), [])
    silent_s = None
    if records and not any(record["r"] == "end" for record in records):
        silent_s = time.time() - path.stat().st_mtime
    try:
        attempt = build_attempt(records, torn, silent_s)
    except journal.DAMAGED as error:
        return _damaged(path, f"{type(error).__name__}: {error}".splitlines()[0][:120])
    if attempt is None and (torn or (path.parent / journal.BEGUN).exists()):
        return _damaged(path, f"{torn} of its lines are not whole" if torn else "it is empty")
    return attempt


def _damaged(path: Path, why: str) -> schema.Attempt:
    """An attempt of which the journal tells no energy: it spent something, and nobody knows how much."""
    reason = f"the journal {path} is damaged ({why})"
    stamp = utc(path.stat().st_mtime)
    return schema.Attempt(
        id=path.parent.name,
        host="unknown",
        start_utc=stamp,
        end_utc=stamp,
        start_mono_s=0.0,
        outcome="killed",
        reason=reason,
        components=[schema.Component(component="cpu", source="unavailable", in_total=True, reason=reason)],
        quality=schema.Quality(flags=["journal_damaged"], notes=[reason]),
    )


def build_attempt(
    records: Sequence[dict[str, Any]], torn: int = 0, silent_s: float | None = None
) -> schema.Attempt | None:
    """Pure core of :func:`read_attempt`. ``silent_s``: seconds since the journal was last written."""
    opened = next((r for r in records if r["r"] == "open"), None)
    go = next((r for r in records if r["r"] == "go"), None)
    if opened is None or go is None:
        return None
    start = go["t"]
    ticks = sorted((r for r in records if r["r"] == "tick" and r["t"] >= start), key=lambda r: r["t"])
    end = next((r for r in records if r["r"] == "end"), None)
    last = ticks[-1]["t"] if ticks else start
    stop = max(end["t"], last) if end else last
    outcome, reason = _outcome(end, opened["attempt"], silent_s)
    window = Window(records, opened, ticks, start, stop)
    components, energies = window.components()
    who = opened["attempt"]
    return schema.Attempt(
        id=who["id"],
        host=who["host"],
        boot_id=who["boot_id"],
        pid=who["pid"],
        slurm_job_id=who["slurm_job_id"],
        slurm_node=who.get("slurm_node"),
        slurm_restart=who["slurm_restart"],
        slurm_restart_reason=who.get("slurm_restart_reason"),
        start_utc=utc(go["u"]),
        end_utc=utc(go["u"] + stop - start),  # a step of the wall clock must not bend the duration
        start_mono_s=start,
        end_mono_s=stop,
        wall_s=stop - start,
        outcome=outcome,
        reason=reason,
        components=components,
        quality=window.quality(components, energies, torn),
        tokens=_tokens(records),
        phases=window.phases(components, energies),
        health=window.health([(start, stop)]),
    )


def _outcome(end: dict | None, who: dict, silent_s: float | None) -> tuple[str, str | None]:
    if end is not None:
        return end["outcome"], end.get("reason")
    running = alive(who)
    if running or (running is None and silent_s is not None and silent_s < ABANDONED_S):
        return "running", None
    return "killed", "the stage and its sampler ended without closing the attempt; it is counted to its last sample"


def _tokens(records: Sequence[dict[str, Any]]) -> schema.Tokens:
    counts: dict[str, int | None] = {}
    for record in records:
        if record["r"] == "tokens":
            counts = record["n"]
    return schema.Tokens(**counts)


class Window:
    """One attempt's readings, device by device."""

    def __init__(self, records, opened, ticks, start: float, stop: float) -> None:
        self.records, self.opened, self.ticks = records, opened, ticks
        self.start, self.stop = start, stop
        self.interval = opened["interval_s"]

    def components(self) -> tuple[list[schema.Component], list[account.Energy | None]]:
        """Components, and the energy behind each (None for one that was never read)."""
        components, energies = [], []
        for index, device in enumerate(self.opened["devices"]):
            energy = self._energy(index, device)
            components.append(self._component(device, energy))
            energies.append(energy)
        for item in self.opened["absent"]:
            components.append(
                schema.Component(
                    component=item["component"],
                    source="unavailable",
                    in_total=item["in_total"],
                    reason=item["reason"],
                    idle_reason=item["reason"],
                )
            )
            energies.append(None)
        return components, energies

    def _energy(self, index: int, device: dict[str, Any]) -> account.Energy:
        samples, checks, shares = [], [], {}
        for tick in self.ticks:
            value = tick["v"][index] if index < len(tick["v"]) else [None, None]
            t = value[3] if len(value) > 3 else tick["t"]
            samples.append((t, value[0], None if value[1] is None else value[1] * 1e-3))
            if device["kind"] == "node":
                earlier = [(t, None, p * 1e-3) for t, p in (value[4] if len(value) > 4 else [])]
                samples[-1:] = [*earlier, samples[-1]]
            if "share" in tick:
                shares[t] = tick["share"]
            if device["kind"] != "node" and len(value) > 4 and value[4] is not None:
                checks.append((t, value[4]))
        if not samples:
            return account.Energy(reason="no sample was taken")
        if self.ticks[-1]["t"] < self.stop:  # the sampler died before the stage
            samples.append((self.stop, None, None))
        if device["kind"] == "codecarbon":
            energy = account.estimate_energy(samples, "codecarbon_process", checks, self.stop, ESTIMATOR_LATE_S)
        elif device["kind"] == "node":
            energy = account.node_energy(samples, self.start, self.stop)
            if device["in_total"] and any("share" in tick for tick in self.ticks):
                why = "other measured stages ran on this host: the node's joules cannot be divided among them"
                energy = replace(energy, gross_j=None, error_j=None, reason=why)
        elif device["kind"] == "rapl":
            energy = account.rapl_energy(
                samples, self.interval, device.get("range"), device["limit_w"], device["unit"], shares
            )
        else:
            energy = account.gpu_energy(
                samples,
                self.interval,
                device["unit"],
                device.get("limit_w"),
                device.get("power_kind"),
                device.get("vendor", "nvml"),
                device.get("range"),
            )
            energy = _shared(energy, device)
        if energy.gross_j is None:
            problem = device.get("error") or self._problem(index)
            energy.reason = f"{energy.reason} ({problem})" if problem else energy.reason
        return energy

    def _problem(self, index: int) -> str | None:
        """The last thing that the device said when it could not be read."""
        for tick in reversed(self.ticks):
            value = tick["v"][index] if index < len(tick["v"]) else []
            if len(value) > 2 and value[2]:
                return value[2]
        return None

    def _component(self, device: dict[str, Any], energy: account.Energy) -> schema.Component:
        known = energy.gross_j is not None
        estimate = device["kind"] == "codecarbon" or device.get("share", 1.0) != 1.0  # a rule is a model too
        idle_j, idle_reason = self._idle(device)
        return schema.Component(
            component=device["component"],
            device=device["device"],
            source=("estimated" if estimate else "measured") if known else "unavailable",
            method=energy.method if known else None,
            gross_j=energy.gross_j,
            idle_j=idle_j,
            idle_reason=idle_reason,
            crosscheck_method=energy.crosscheck_method,
            crosscheck_j=energy.crosscheck_j,
            error_j=energy.error_j,
            in_total=in_total(device),
            reason=None if known else energy.reason,
        )

    def _idle(self, device: dict[str, Any]) -> tuple[float | None, str | None]:
        if device["kind"] == "codecarbon":
            return None, "an estimate of one process leaves out the machine's idle power"
        idle = self.opened.get("idle")
        if not idle:
            return None, "no idle baseline was measured"
        if idle["host"] != self.opened["attempt"]["host"]:
            return None, f"the idle baseline is of another host ({idle['host']})"
        name = idle_name(device)
        watts = idle["watts"].get(name)
        if watts is None:
            why = (idle.get("reasons") or {}).get(name)
            return None, f"the idle baseline has no value: {why or 'the device was not there'}"
        seconds = self.stop - self.start
        if device["kind"] == "rapl":  # beside other stages only a share of the package, idle power included, is ours
            beats = [self.start, *(tick["t"] for tick in self.ticks)]
            seconds -= math.fsum(
                (t1 - t0) * (1 - tick.get("share", 1.0))
                for (t0, t1), tick in zip(itertools.pairwise(beats), self.ticks, strict=True)
            )
        return watts * max(0.0, seconds), None

    def quality(self, components, energies, torn: int) -> schema.Quality:
        """The worst device's timing, and every flag with the device it is about."""
        times = [tick["t"] for tick in self.ticks]
        worst = account.timing(times, self.start, self.stop, self.interval)
        flags = list(self.opened["flags"])
        notes = list(self.opened["notes"])
        for component, energy, device in zip(components, energies, self.opened["devices"], strict=False):
            if device["kind"] not in ("codecarbon", "node") and component.in_total:
                own = account.timing(energy.times, self.start, self.stop, self.interval)
                if (own.coverage or 0) < (worst.coverage or 0):
                    worst = own
            flags += energy.flags
            notes += [f"{device['device'] or device['component']}: {note}" for note in energy.notes]
        limits = {device["device"]: device.get("hot_c") for device in self.opened["devices"]}
        for found in self.health([(self.start, self.stop)]):
            for flag, note in judge(found, limits[found.device]):
                flags.append(flag)
                notes.append(f"{found.device}: {note}")
        for record in self.records:
            if record["r"] == "flag":
                flags.append(record["flag"])
                if record.get("note"):
                    notes.append(record["note"])
            elif record["r"] == "resume":
                flags.append("sampler_restarted")
        if worst.gaps:
            flags.append("gap")
        if torn:
            flags.append("journal_torn")
            notes.append(f"{torn} line(s) of the journal are not whole")
        notes += self._clock_steps()
        return schema.Quality(
            interval_asked_s=self.interval,
            interval_reached_s=worst.median_s,
            largest_gap_s=worst.largest_s,
            gaps=worst.gaps,
            coverage=worst.coverage,
            flags=list(dict.fromkeys(flags)),
            notes=list(dict.fromkeys(notes)),
        )

    def health(self, spans: Sequence[tuple[float, float]]) -> list[schema.Health]:
        """What explains each GPU's joules, over the ticks in ``spans``."""
        ticks = [tick for tick in self.ticks if any(t0 <= tick["t"] <= t1 for t0, t1 in spans)]
        gpus = [device["device"] for device in self.opened["devices"] if device["component"] == "gpu"]
        return [found for gpu in gpus if (found := health(ticks, gpu)) is not None]

    def _clock_steps(self) -> list[str]:
        if len(self.ticks) < 2:
            return []
        offsets = [tick["u"] - tick["t"] for tick in self.ticks]
        step = max(offsets) - min(offsets)
        return [f"the wall clock moved by {step:.1f} s; durations are monotonic"] if step > 1 else []

    def phases(self, components, energies) -> list[schema.Phase]:
        found, open_phases, spans = [], {}, {}
        for record in self.records:
            if record["r"] == "phase+":
                open_phases[record["id"]] = record
            elif record["r"] == "phase-" and record["id"] in open_phases:
                begun = open_phases.pop(record["id"])
                found.append(self._phase(begun["name"], begun["t"], record["t"], components, energies))
                spans.setdefault(begun["name"], []).append((begun["t"], record["t"]))
        for begun in open_phases.values():  # a kill inside a phase
            found.append(self._phase(begun["name"], begun["t"], self.stop, components, energies))
            spans.setdefault(begun["name"], []).append((begun["t"], self.stop))
        folded = _folded_phases(found)
        if any("h" in tick for tick in self.ticks):
            for phase in folded:
                own = spans[phase.name]
                phase.health = self.health(own if len(own) > MOST_PHASES else [own.pop(0)])
        return folded

    def _phase(self, name: str, t0: float, t1: float, components, energies) -> schema.Phase:
        parts = [(c, e) for c, e in zip(components, energies, strict=True) if c.in_total]
        _, _, source, reason = schema.total(components)
        joules = None
        if reason is None and all(e is not None and e.curve_t for _, e in parts):
            joules = math.fsum(max(0.0, e.at(t1) - e.at(t0)) for _, e in parts)
        return schema.Phase(
            name=name,
            wall_s=t1 - t0,
            gross_j=joules,
            source=source if joules is not None else "unavailable",
            reason=None if joules is not None else reason or "no sample in the phase",
        )


def _shared(energy: account.Energy, device: dict[str, Any]) -> account.Energy:
    """The part of a GPU's energy that a slice of it is given; null where the rule has no value for it."""
    share = device.get("share", 1.0)
    if share is not None:
        return energy if share == 1.0 else energy.part(share)
    whole = "unknown" if energy.gross_j is None else f"{energy.gross_j:.1f} J"
    why = f"the slice's share of the GPU ({whole}) is unknown: {device.get('share_rule')}"
    return replace(energy, gross_j=None, error_j=None, crosscheck_j=None, curve_t=[], curve_j=[], reason=why)


#: A phase of one name that occurs more often is one row: its sums.
MOST_PHASES = 64


def _folded_phases(phases: list[schema.Phase]) -> list[schema.Phase]:
    """Phases in order; those of a name that occurs in each of many steps as one, with the sums of seconds and J."""
    by_name: dict[str, list[schema.Phase]] = {}
    for phase in phases:
        by_name.setdefault(phase.name, []).append(phase)
    found = []
    for phase in phases:
        same = by_name[phase.name]
        if len(same) <= MOST_PHASES:
            found.append(phase)
        elif phase is same[0]:
            unknown = next((p for p in same if p.gross_j is None), None)
            joules = None if unknown else math.fsum(p.gross_j for p in same)
            update = {"wall_s": math.fsum(p.wall_s for p in same), "gross_j": joules}
            found.append((unknown or phase).model_copy(update=update))
    return found


def fold_attempts(
    attempts: Iterable[schema.Attempt],
) -> tuple[schema.Energy, schema.Quality, schema.Tokens]:
    """All attempts of a stage as one: energy (what did not make the artifact is wasted), quality (the worst), tokens
    (summed).

    Attempts that still run are left out: their energy is not final.
    """
    tries = [attempt for attempt in attempts if attempt.outcome != "running"]
    components = _fold_components(tries)
    gross, error, source, reason = schema.total(components)
    useful = {id(attempt) for attempt in made_it(tries)}
    wasted = _sum_totals([a for a in tries if id(a) not in useful])
    idles = [c.idle_j for c in components if c.in_total]
    idle = math.fsum(idles) if idles and all(value is not None for value in idles) else None
    energy = schema.Energy(
        components=components,
        gross_j=gross,
        idle_j=idle,
        wasted_gross_j=wasted,
        error_j=error,
        source=source,
        reason=reason,
        node_explained=schema.explained(components),
    )
    return energy, _fold_quality(tries), _fold_tokens(tries)


def made_it(attempts: Sequence[schema.Attempt]) -> list[schema.Attempt]:
    """The attempts that made the committed artifact: the last that completed, and those of other nodes beside it.

    An earlier one that completed made a copy that was damaged since, or was killed before its record was written.
    """
    completed = [a for a in attempts if a.outcome == "completed"]
    if not completed:
        return []
    last = max(completed, key=lambda a: (a.end_utc or a.start_utc, a.start_utc, a.id, a.wall_s or 0.0))
    return [a for a in completed if a is last or (_node(a) != _node(last) and _beside(a, last))]


def _node(attempt: schema.Attempt) -> str:
    return attempt.slurm_node or attempt.host


def _beside(one: schema.Attempt, other: schema.Attempt) -> bool:
    """Whether two attempts ran at the same time."""
    ends = (one.end_utc or one.start_utc, other.end_utc or other.start_utc)
    return one.start_utc <= ends[1] and other.start_utc <= ends[0]


def _sum_totals(attempts: Sequence[schema.Attempt]) -> float | None:
    totals = [schema.total(a.components)[0] for a in attempts]
    return None if any(value is None for value in totals) else math.fsum(totals)


def _fold_components(attempts: Sequence[schema.Attempt]) -> list[schema.Component]:
    groups: dict[tuple, list[schema.Component]] = {}
    for attempt in attempts:
        for item in attempt.components:
            # a device that one attempt could not see at all stays apart from the one that another attempt measured
            key = (item.component, item.device, item.in_total)
            groups.setdefault(key, []).append(item)
    return [_fold_group(items) for items in groups.values()]


def _fold_group(items: list[schema.Component]) -> schema.Component:
    if len(items) == 1:
        return items[0].model_copy()
    missing = [item for item in items if item.gross_j is None]
    methods = list(dict.fromkeys(item.method for item in items if item.method))
    checks = [item.crosscheck_j for item in items]
    sources = {item.source for item in items}

    def added(field: str) -> float | None:
        values = [getattr(item, field) for item in items]
        return None if any(value is None for value in values) else math.fsum(values)

    return items[0].model_copy(
        update={
            "source": "unavailable" if missing else "estimated" if "estimated" in sources else "measured",
            "method": None if missing else "+".join(methods),
            "gross_j": None if missing else added("gross_j"),
            "idle_j": added("idle_j"),
            "idle_reason": next((item.idle_reason for item in items if item.idle_reason), None),
            "crosscheck_j": None if missing or None in checks else added("crosscheck_j"),
            "error_j": None if missing else added("error_j"),
            "reason": f"{len(missing)} of {len(items)} attempts: {missing[0].reason}" if missing else None,
        }
    )


def _fold_quality(attempts: Sequence[schema.Attempt]) -> schema.Quality:
    parts = [attempt.quality for attempt in attempts]
    if not parts:
        return schema.Quality()

    def known(field: str) -> list[float]:
        return [value for part in parts if (value := getattr(part, field)) is not None]

    walls = [(a.wall_s, a.quality.coverage) for a in attempts if a.wall_s and a.quality.coverage is not None]
    window = math.fsum(wall for wall, _ in walls)
    return schema.Quality(
        interval_asked_s=max(known("interval_asked_s"), default=None),
        interval_reached_s=max(known("interval_reached_s"), default=None),
        largest_gap_s=max(known("largest_gap_s"), default=None),
        gaps=sum(known("gaps")) if known("gaps") else None,
        coverage=math.fsum(wall * share for wall, share in walls) / window if window else None,
        flags=list(dict.fromkeys(flag for part in parts for flag in part.flags)),
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _fold_tokens(attempts: Sequence[schema.Attempt]) -> schema.Tokens:
    sums = {}
    for kind in schema.Tokens.model_fields:
        counts = [value for a in attempts if (value := getattr(a.tokens, kind)) is not None]
        sums[kind] = sum(counts) if counts else None
    return schema.Tokens(**sums)


def per_token(gross_j: float | None, reason: str | None, tokens: schema.Tokens) -> schema.PerToken:
    """J/token over the kind of token that the stage is about: generated, else processed.

    All attempts' joules are divided by all attempts' tokens, so that a stage that was killed and resumed stays
    comparable with one that was not.
    """
    for kind in ("generated", "processed"):
        count = getattr(tokens, kind)
        if count:
            if gross_j is None:
                return schema.PerToken(divides_by=kind, reason=reason or "the energy is unknown")
            return schema.PerToken(value=gross_j / count, divides_by=kind)
    return schema.PerToken(reason="the stage counts no tokens")
