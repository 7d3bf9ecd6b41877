"""The answer in words: one sentence for each pipeline and student, from a summary row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..answer.breakeven import whole_reuses
from ..answer.intervals import MOST_SEEDS
from ..answer.labels import pipeline_name
from .style import energy_unit, number

PERCENT = "\u202f%"  # a narrow space that does not break


FRONT_VIEWS = ("oneoff", "amortised", "marginal", "campaign")


def teller(rows: Sequence[Mapping[str, Any]]) -> Callable[[float | None], str]:
    """How energies (kWh) of a summary are written: all in the unit that suits its students, so that they compare."""
    values = [row.get(f"e_{view}_kwh") for row in rows for view in FRONT_VIEWS]
    if all(value is None for value in values):
        return energy
    factor, unit = energy_unit(values)
    return lambda kwh: "an unknown energy" if kwh is None else f"{number(kwh * factor)} {unit}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _name(row: Mapping[str, Any]) -> str:
    pipeline = pipeline_name(row["pipeline"])
    rest = row["label"].removeprefix(f"{pipeline} {row['student']}")
    return f"{pipeline} for the {row['student']} student{rest}"


def _range(row: Mapping[str, Any]) -> str:
    if row["n_star_low"] is None:
        return "" if row["n_star_status"] != "finite" else ", from one seed and so without an interval"
    level = f"{100 * row['confidence']:.3g}{PERCENT}"
    low = whole_reuses(row["n_star_low"])
    if row["n_star_high"] is None:
        return f" ({level} interval: {low} reuses to never)"
    return f" ({level} interval: {low} to {whole_reuses(row['n_star_high'])})"


def _share(excess: float) -> str:
    percent = abs(excess) * 100
    amount = f"{percent:.0f}{PERCENT}" if percent >= 1 else f"{percent:.1f}{PERCENT}"
    return f"{amount} {'more' if excess > 0 else 'less'}"


def _so_far(row: Mapping[str, Any], base: str) -> str:
    """N, and the balance of the artifact over all that consumed it."""
    have = f"you have {row['n_reuse']}"
    excess = row["excess_so_far"]
    if excess is None:
        return f"{have}."
    return f"{have}: over all of them it has cost {_share(excess)} than {base} so far."


def lead(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The answer in one sentence: what distilling has cost against the baseline, counted whole, and whether it has
    paid. None where nothing is compared."""
    found = comparisons(rows)
    if not found:
        return None
    base = found[0]["baseline"]
    known = [(c["name"], _share(c["excess"])) for c in found if c["excess"] is not None]
    if not known:
        return f"What distilling has cost against {base} cannot be told: {found[0]['reason']}."
    (name, share), *rest = known
    text = f"Counted whole, {name} has so far cost {share} energy than {base} for the same students"
    text += "".join(f", {name} {share}" for name, share in rest)
    paid = [c["name"] for c in found if (c["row"]["balance_kwh"] or -1.0) >= 0]
    judged = [c for c in found if c["row"]["balance_kwh"] is not None]
    if judged and not paid:
        text += "; " + ("neither teacher artifact" if len(judged) == 2 else "no teacher artifact") + " has paid yet"
    elif paid:
        text += f"; the teacher artifact of {' and '.join(paid)} has paid"
    return text + "."


def comparisons(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A dict for each teacher, data set and distilling pipeline, the cheapest first: ``name``, ``baseline``, ``ours``
    and ``theirs`` (kWh spent in all on the same kept students), ``students``, ``excess`` (None with ``reason``) and a
    ``row`` of its."""
    kept = [r for r in rows if r["is_kept"]]
    baselines = {r["group"]: r for r in kept if r["is_baseline"]}
    teachers = {r["teacher"] for r in kept if not r["is_baseline"]}
    datasets = {r["dataset"] for r in kept}
    found = []
    for key in dict.fromkeys((r["teacher"], r["dataset"], r["pipeline"]) for r in kept if not r["is_baseline"]):
        members = [r for r in kept if (r["teacher"], r["dataset"], r["pipeline"]) == key]
        pairs = [(r, baselines[r["baseline_group"]]) for r in members if r["baseline_group"] in baselines]
        if not pairs or any(r["campaign_total_kwh"] is None for pair in pairs for r in pair):
            continue
        ours = sum(r["campaign_total_kwh"] for r, _ in pairs)
        theirs = sum(b["campaign_total_kwh"] for _, b in pairs)
        name = pipeline_name(key[2])
        if members[0]["n_reuse"] is not None and len(teachers) > 1:
            name += f" from {key[0]}"
        if len(datasets) > 1:
            name += f" on {key[1]}"
        comparable = all(r["campaign_excess"] is not None for r, _ in pairs) and theirs > 0
        found.append(
            {
                "name": name,
                "baseline": pipeline_name(pairs[0][1]["pipeline"]),
                "ours": ours,
                "theirs": theirs,
                "students": len(pairs),
                "excess": ours / theirs - 1 if comparable else None,
                "reason": None if comparable else "executions of different classes or unlike numbers of runs",
                "row": members[0],
            }
        )
    return sorted(found, key=lambda c: (c["excess"] is None, c["excess"] or 0.0))


def headline(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The realised answer, a sentence for each distilling pipeline: what it spent on its kept students, what the
    baseline spent for the same ones, and the balance of its artifact."""
    told = teller(rows)
    lines = []
    for c in comparisons(rows):
        students = _plural(c["students"], "student")
        name, base = c["name"], c["baseline"]
        text = f"{name}: {told(c['ours'])} spent in all on {students}; {base} spent {told(c['theirs'])} on the same"
        if c["excess"] is None:
            text += f" (not compared: {c['reason']})"
        else:
            text += f", so {name} has cost {_share(c['excess'])}"
        lines.append(text + "." + _balance(c["row"], base, told))
    return lines + teacher_choice(rows)


def teacher_choice(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of several teachers, which is worth its joules for each student: a sentence for each pipeline and student."""
    lines = []
    told = teller(rows)
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["is_kept"] and not row["is_baseline"] and row["n_reuse"] is not None:
            found.setdefault((row["dataset"], row["pipeline"], row["student"]), []).append(row)
    for (_, pipeline, student), members in found.items():
        if len({row["teacher"] for row in members}) < 2:
            continue
        start = f"Teacher of the {student} student by {pipeline_name(pipeline)}: "
        if any(row["e_amortised_kwh"] is None or row["q"] is None for row in members):
            lines.append(start + "not told, because an energy or a Q is unknown.")
            continue
        if len({row["execution"] for row in members}) > 1:
            lines.append(start + "not told, because they ran in different execution classes.")
            continue
        cheap = min(members, key=lambda row: row["e_amortised_kwh"])
        good = max(members, key=lambda row: row["q"])
        if cheap is good:
            lines.append(
                f"{start}{cheap['teacher']} costs less ({told(cheap['e_amortised_kwh'])}) and gives no less Q."
            )
            continue
        more, gain = good["e_amortised_kwh"] - cheap["e_amortised_kwh"], good["q"] - cheap["q"]
        text = f"{start}{good['teacher']} gives {gain:.3f} more Q than {cheap['teacher']} for {told(more)} more"
        apart = cheap["q_high"] is not None and good["q_low"] is not None and good["q_low"] > cheap["q_high"]
        lines.append(text + ("." if apart else f", within what the intervals leave open: {cheap['teacher']} suffices."))
    return lines


def overhead(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the energy that went into starting programs, loading models and writing, of the executions that tell it
    apart; None where none does. ``rows``: the ledger's that count."""
    told = [r for r in rows if r["total_j"] is not None and r["load_j"] is not None and r["start_j"] is not None]
    spent = sum(r["total_j"] for r in told)
    return sum(r["start_j"] + r["load_j"] + (r["write_j"] or 0.0) for r in told) / spent if spent else None


def _balance(row: Mapping[str, Any], base: str, told: Callable[[float | None], str]) -> str:
    """What its artifact has brought, and how many more reuses it takes."""
    value = row["balance_kwh"]
    if value is None:
        return ""
    saved = row["balance_saved_kwh"]
    text = f" Its teacher artifact and its selection cost {told(row['balance_cost_kwh'])}"
    if saved >= 0:
        text += f" and have saved {told(saved)} in training against {base}"
    else:
        text += f", and its students cost {told(-saved)} more to train than by {base}"
    if value >= 0:
        text += ": it has paid"
    elif row["more_reuses"] is None:
        text += ": at this rate it never pays"
    else:
        text += f": {_plural(whole_reuses(row['more_reuses']), 'more reuse')} at the mean saving would pay it"
    if row["p_pays"] is not None:
        text += f" (probability that it has paid: {_probability(row['p_pays'])})"
    return text + "."


def _one_seed(row: Mapping[str, Any]) -> str:
    return " (from one seed, without an interval)" if row["saving_high_kwh"] is None else ""


def _probability(value: float) -> str:
    shown = "below 1" if value < 0.01 else "above 99" if value > 0.99 else f"{100 * value:.0f}"
    return shown + PERCENT


def detail(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What belongs beside the sentence: the chance that it has paid, the quality bought, and T*. None if nothing
    does."""
    base = next((r for r in rows if r["group"] == row["baseline_group"]), None)
    parts = []
    if row["delta_q"] is not None and base is not None:
        change = f"{row['delta_q']:+.3f}"
        if row["delta_q_low"] is not None:
            change += f" ({row['delta_q_low']:+.3f} to {row['delta_q_high']:+.3f})"
        text = f"Quality against {pipeline_name(base['pipeline'])}: ΔQ = {change}"
        equal = row["n_star_equal_quality_status"]
        if equal == "finite":
            text += (
                f"; at equal quality it pays back after {_plural(whole_reuses(row['n_star_equal_quality']), 'reuse')}"
            )
        elif equal == "never":
            text += "; at equal quality it never pays back"
        elif equal == "undecided":
            text += "; at equal quality it is undecided whether it pays back"
        parts.append(text.replace("-", "−") + ".")
    if text := _advice(row):
        parts.append(text)
    if text := _operations(row, base):
        parts.append(text)
    own = row["t_star_reference"] is not None and row["t_star_reference"].endswith(f" {row['student']}")
    if (served := serving(row)) and not own:  # one architecture serves at one cost: a difference is noise
        parts.append(served)
    return " ".join(parts) or None


def _advice(row: Mapping[str, Any]) -> str | None:
    """How many seeds more would decide what is undecided."""
    if row["n_star_status"] != "undecided" or row["n_star_low"] is None:
        return None
    if row["seeds_to_decide"] is None:
        return f"More seeds alone would hardly decide it (more than {MOST_SEEDS}, from the spread seen)."
    more = _plural(row["seeds_to_decide"] - row["seeds"], "more seed")
    return f"{more} would decide whether it saves (80{PERCENT} power, from the spread seen)."


def _operations(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> str | None:
    """N* in FLOPs beside N*, and what a difference means."""
    reached = ""
    if base is not None and row["utilisation"] is not None and base["utilisation"] is not None:
        shares = [f"{number(100 * r['utilisation'], 2)}{PERCENT}" for r in (row, base)]
        reached = f" (its training reached {shares[0]} of the peak, {pipeline_name(base['pipeline'])} {shares[1]})"
    if row["n_star_flops_status"] == "never":
        if row["n_star_status"] == "finite":
            text = "In floating-point operations it never pays back: what it saves in joules is implementation"
            return f"{text}{reached}."
        return None
    if row["n_star_flops_status"] != "finite":
        return None
    count = _plural(whole_reuses(row["n_star_flops"]), "reuse")
    text = f"In floating-point operations it pays back after {count}; what differs is implementation and hardware"
    return f"{text}{reached}."


def sentence(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """One answer for a group: does it pay back, after how many reuses, and what it has cost so far."""
    base = next((r for r in rows if r["group"] == row["baseline_group"]), None)
    base_name = pipeline_name(base["pipeline"]) if base else "the baseline"
    name, told = _name(row), teller(rows)
    if row["is_baseline"]:
        if row["e_oneoff_kwh"] is None:
            return f"{name} is the baseline; its energy is unknown ({row['e_reason']})."
        quality = "unknown" if row["q"] is None else f"{row['q']:.3f}"
        reason = f" ({row['q_reason']})" if row["q"] is None else ""
        return f"{name} is the baseline: {told(row['e_oneoff_kwh'])} and Q = {quality}{reason}."
    status = row["n_star_status"]
    if status == "unknown" and row["n_reuse"] is None and base is not None:
        costs = ""
        if row["campaign_excess"] is not None:
            costs = f"; with all that was spent on it, it cost {_share(row['campaign_excess'])} than {base_name}"
        return f"{name} reuses no teacher artifact, so that it has no N*{costs}."
    if status == "unknown" and row["n_reuse"] is None:
        quality = "an unknown Q" if row["q"] is None else f"Q = {row['q']:.3f}"
        made = f"{told(row['e_student_kwh'])} to make, {told(row['e_oneoff_kwh'])} with all that it needs"
        return f"{name}: {made}, and {quality}; it reuses no teacher artifact, so that it has neither N nor N*."
    if status == "unknown":
        return f"{name}: whether it pays back is unknown, because {row['n_star_reason']}."
    if status == "never":
        text = (
            f"{name} never pays back{_one_seed(row)}"
            f" against {base_name}: its training alone costs no less"
            f" ({told(row['e_student_kwh'])} against {told(base['e_student_kwh'])}); {_so_far(row, base_name)}"
        )
    elif status == "undecided":
        guess = f"; the best guess is {whole_reuses(row['n_star'])} reuses" if row["n_star"] else ""
        text = (
            f"{name}: undecided whether it ever pays back, because the saving in training energy is not"
            f" distinguishable from none{guess}{_range(row)}; {_so_far(row, base_name)}"
        )
    else:
        text = (
            f"{name} pays back after {_plural(whole_reuses(row['n_star']), 'reuse')}{_range(row)};"
            f" {_so_far(row, base_name)}"
        )
    return text


def line(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A group in one short line, for a list in which its name and its verdict stand beside it."""
    base = next((r for r in rows if r["group"] == row["baseline_group"]), None)
    told = teller(rows)
    quality = "Q unknown" if row["q"] is None else f"Q {row['q']:.3f}"
    if row["is_baseline"] or base is None:
        whole = "energy unknown" if row["e_oneoff_kwh"] is None else told(row["e_oneoff_kwh"])
        return f"{whole}, {quality}"
    parts = []
    status, n = row["n_star_status"], row["n_reuse"]
    if status == "finite":
        parts.append(f"N* {whole_reuses(row['n_star'])}{_range(row)}, N {n}")
    elif n is not None:
        parts.append(f"N {n}" + (_one_seed(row) if status == "never" else ""))
    if row["campaign_excess"] is not None:
        parts.append(f"{_share(row['campaign_excess'])} energy than {pipeline_name(base['pipeline'])}, all counted")
    if row["delta_q"] is None:
        parts.append(quality)
    else:
        low, high = row["delta_q_low"], row["delta_q_high"]
        same = low is not None and low <= 0 <= high
        parts.append(f"ΔQ {row['delta_q']:+.3f}".replace("-", "−") + (" (not told from 0)" if same else ""))
    return "; ".join(parts)


def serving(row: Mapping[str, Any]) -> str | None:
    """The sentence on T*, or None where nothing was compared."""
    reference = row["t_star_reference"]
    if reference is None:
        return None
    status = row["t_star_status"]
    if status == "finite":
        limits = ""
        if row["t_star_low"] is not None and row["t_star_high"] is not None:
            limits = f" ({number(row['t_star_low'], 2)} to {number(row['t_star_high'], 2)})"
        tokens = f"{number(row['t_star'])} tokens{limits}"
        return f"Served instead of {reference} it repays its training after {tokens}."
    if status == "until":
        tokens = f"{number(row['t_star'])} tokens"
        return f"It cost less than {reference} and serves for more: it is ahead until {tokens} are served."
    if status == "immediate":
        return f"It repays from the first token served: it cost no more than {reference} and serves for less."
    if status == "undecided":
        return f"Whether serving it instead of {reference} saves energy is undecided."
    if status == "never":
        return f"It never repays by being served: a token takes no less energy than with {reference}."
    return f"T* against {reference} is unknown, because {row['t_star_reason']}."


def energy(kwh: float | None) -> str:
    """An energy with a unit that reads well."""
    if kwh is None:
        return "an unknown energy"
    scales = ((1.0, "kWh"), (1e3, "Wh"), (1e6, "mWh"))
    factor, unit = next((s for s in scales if kwh * s[0] >= 0.1), scales[-1])
    return f"{number(kwh * factor)} {unit}"
