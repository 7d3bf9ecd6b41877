"""The published stages beside the same stages at measured rates: what of the answer is distillation, what utilisation.

Tokens are the published joules over the joules a token of the public logs. A rate that was measured for the model's
shape is *measured*; of the others' training an *extrapolated* range is given, by FLOPs from the shapes that were
measured, and marked so; where nothing stands near, nothing is said. The host's CPU is in neither side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..answer.breakeven import JOULES_PER_KWH
from ..errors import UserError
from ..forecast.rates import presets, read_rates, same_shape

#: FLOPs of a parameter and token by what a stage does with it (attention left out: below a tenth at 1,024 tokens).
FLOPS = {"student_training": 6.0, "teacher_logits": 2.0, "teacher_generation": 2.0}
KIND = {"student_training": "train", "teacher_logits": "forward", "teacher_generation": "generate"}
TEACHER_STAGE = {"kd": "teacher_logits", "synthetic": "teacher_generation"}


@dataclass(frozen=True)
class Work:
    """A stage of a run: energies in kWh, utilisation as a share of the accelerator's dense FLOP/s."""

    stage: str
    pipeline: str
    model: str
    published_kwh: float
    tokens: float | None
    tokens_basis: str
    flops: float | None
    published_j_per_token: float | None
    published_utilisation: float | None
    ours_j_per_token: float | None
    ours_low: float | None
    ours_high: float | None
    ours_utilisation: float | None
    ours_kwh: float | None
    ours_basis: str  # measured: …, extrapolated: …, or why there is none


@dataclass(frozen=True)
class Star:
    """N* of a pipeline and student: as published, in FLOPs, and at measured rates."""

    pipeline: str
    student: str
    published: float | None
    flops: float | None
    ours: float | None
    ours_low: float | None
    ours_high: float | None
    ours_basis: str


def shipped() -> list[dict[str, Any]]:
    """Rows of every shipped file of rates, each with the ``preset`` that it is from."""
    return [row | {"preset": name} for name in presets() for row in read_rates(name) if row.get("kind")]


def efficiency(table: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[list[Work], list[Star]]:
    """Stages and break-even points. ``table``: ``configs/paper_table.yaml``; ``rows``: measured rates.

    Raises UserError where the table has no section ``efficiency``.
    """
    facts = table.get("efficiency")
    if facts is None:
        raise UserError("the published table has no section 'efficiency'")
    works: list[Work] = []
    for run in table["runs"]:
        pipeline, student = run["pipeline"], str(run["student"])
        if "teacher_kwh" in run:
            stage = TEACHER_STAGE[pipeline]
            if not any(w.stage == stage for w in works):
                works.append(_work(facts, rows, stage, pipeline, str(table["teacher"]), run["teacher_kwh"]))
        works.append(_work(facts, rows, "student_training", pipeline, student, run["student_kwh"]))
    return works, _stars(table, works)


def _work(facts, rows, stage: str, pipeline: str, model: str, kwh: float) -> Work:
    parameters = facts["parameters"].get(model)
    log = _log(facts, stage, pipeline, model)
    tokens, j_token, basis = None, None, "no log says its tokens"
    if log is not None and log.get("tokens"):
        tokens, basis = float(log["tokens"]), f"about: {log['about']}"
        j_token = kwh * JOULES_PER_KWH / tokens
    elif log is not None:
        j_token = log["j_per_token"]
        tokens = kwh * JOULES_PER_KWH / j_token
        own = log.get("pipeline") in (None, pipeline)
        basis = "its energy over its log's J/token" if own else f"at the J/token of {log['pipeline']}'s log: derived"
    each = FLOPS[stage] * parameters if parameters else None
    flops = each * tokens if each and tokens else None
    rate = log.get("tok_s") if log else None
    share = each * rate / facts["accelerator"]["flops_per_s"] if each and rate else None
    found, low, high, reached, ours_basis = _ours(rows, stage, pipeline, parameters, facts)
    ours_kwh = found * tokens / JOULES_PER_KWH if found is not None and tokens else None
    return Work(
        *(stage, pipeline, model, kwh, tokens, basis, flops, j_token, share),
        *(found, low, high, reached, ours_kwh, ours_basis),
    )


def _log(facts, stage: str, pipeline: str, model: str) -> Mapping[str, Any] | None:
    """A stage's own log; of a training, another pipeline's of the same student where it has none."""
    logs = [log for log in facts["logs"] if log["stage"] == stage and str(log["model"]) == model]
    return next((log for log in logs if log.get("pipeline") == pipeline), logs[0] if logs else None)


def _ours(rows, stage: str, pipeline: str, parameters: float | None, facts):
    """(J/token, low, high, utilisation, basis) of a stage at measured rates."""
    kind, peak = KIND[stage], facts["accelerator"]["flops_per_s"]
    every = [r for r in rows if r["stage"] == stage and r["kind"] == kind and r["j_per_token"] and r["parameters"]]
    every.sort(key=lambda r: (r.get("j_per_token_low") is not None, str(r["measured_utc"])), reverse=True)  # best first
    exact = [r for r in every if same_shape(r["parameters"], parameters)]
    named = [r for r in exact if r["pipeline_kind"] in (None, pipeline)] or exact
    if named:
        row = named[0]
        # One run has no interval of its own: the other settings that were measured show how far one may be off.
        values = [r["j_per_token"] for r in exact]
        values += [r[key] for r in exact for key in ("j_per_token_low", "j_per_token_high") if r.get(key)]
        share = FLOPS[stage] * parameters * row["tok_s"] / peak
        where = f"{row['execution'].partition(',')[0].removeprefix('1× ')}, {str(row['measured_utc'])[:10]}"
        note = "" if row["pipeline_kind"] in (None, pipeline) else f", as {row['pipeline_kind']}"
        note += "".join(f", {text.partition(':')[0]}" for text in row["notes"] or () if text.startswith("by "))
        return row["j_per_token"], min(values), max(values), share, f"measured: {where}{note}"
    if not every or not parameters or stage != "student_training":
        return None, None, None, None, "not measured, and no rate stands near enough"
    scaled = [r["j_per_token"] * parameters / r["parameters"] for r in every]
    low = min(scaled)
    forward = [r for r in rows if r["stage"] == "teacher_logits" and r["kind"] == "forward" and r["parameters"]]
    big = max((r for r in forward if r["j_per_token"]), key=lambda r: r["parameters"], default=None)
    if big is not None:  # larger products reach more FLOPs a joule, as the largest forward pass shows
        low = min(low, 3.0 * big["j_per_token"] * parameters / big["parameters"])
    named = [r for r in every if r["pipeline_kind"] == pipeline] or every
    likely = named[0]["j_per_token"] * parameters / named[0]["parameters"]
    size = named[0]["parameters"] / 1e9
    return likely, low, max(scaled), None, f"extrapolated by FLOPs from the training of {size:.1f} B"


def _stars(table: Mapping[str, Any], works: Sequence[Work]) -> list[Star]:
    """N* = E_teacher / (E_baseline − E_distilled), each of the three with the same tokens."""
    trained = {(w.pipeline, w.model): w for w in works if w.stage == "student_training"}
    made = {w.stage: w for w in works if w.stage != "student_training"}
    stars = []
    for (pipeline, student), work in trained.items():
        base = trained.get((table.get("baseline", "sft"), student))
        if pipeline not in TEACHER_STAGE or base is None:
            continue
        teacher = made[TEACHER_STAGE[pipeline]]
        ours, low, high, basis = _ours_star(teacher, base, work)
        stars.append(
            Star(
                pipeline,
                student,
                _ratio(teacher.published_kwh, base.published_kwh - work.published_kwh),
                None
                if None in (teacher.flops, base.flops, work.flops)
                else _ratio(teacher.flops, base.flops - work.flops),
                *(ours, low, high, basis),
            )
        )
    return stars


def _ours_star(teacher: Work, base: Work, work: Work) -> tuple[float | None, float | None, float | None, str]:
    """At one J/token for both trainings: what is saved is tokens. Two rates of one run each do not tell their
    difference."""
    if teacher.ours_kwh is None:
        return None, None, None, f"{teacher.stage}: {teacher.ours_basis}"
    if work.ours_j_per_token is None or base.tokens is None or work.tokens is None:
        return None, None, None, work.ours_basis
    saved = base.tokens - work.tokens
    if saved <= 0:
        return None, None, None, "never: it trains on no fewer tokens"
    ends = (teacher.ours_j_per_token, work.ours_j_per_token), (teacher.ours_low, work.ours_high)
    value, low, high = (teacher.tokens * top / (saved * j) for top, j in (*ends, (teacher.ours_high, work.ours_low)))
    by = ", by transformers" if "by transformers" in teacher.ours_basis else ""
    return value, low, high, work.ours_basis.partition(":")[0].partition(" ")[0] + by


def _ratio(top: float, bottom: float) -> float | None:
    return top / bottom if bottom > 0 else None


def paragraph(works: Sequence[Work], stars: Sequence[Star]) -> str:
    """What of the published conclusion is distillation and what was utilisation, in words, from the numbers alone."""
    teacher = next(w for w in works if w.stage == "teacher_logits")
    student = next(w for w in works if w.stage == "student_training" and w.pipeline == "kd")
    star = next(s for s in stars if s.pipeline == "kd" and s.student == student.model)
    said = []
    used = [w for w in works if w.published_utilisation is not None]
    if used:
        least, most = min(w.published_utilisation for w in used), max(w.published_utilisation for w in used)
        said.append(
            f"The public logs use {least:.1%} to {most:.1%} of the accelerator's dense bf16 FLOP/s: their joules are "
            "mostly those of a card that waits."
        )
    for work, what in ((teacher, "the teacher's cache"), (student, f"training the {student.model} student by KD")):
        if work.ours_basis.startswith("measured"):
            less = work.published_j_per_token / work.ours_j_per_token
            said.append(
                f"At measured rates {what} takes {work.ours_j_per_token:.3g} J/token where "
                f"{work.published_j_per_token:.3g} is published, {less:.0f} "
                f"times less ({work.published_kwh:.2f} kWh becomes {work.ours_kwh:.2f}; "
                f"{work.ours_basis.partition(': ')[2]}, the logs: H100)."
            )
    if star.ours is not None and star.published is not None and star.flops is not None:
        unequal = (
            "training was slowed down more than the teacher's pass, and the tokens that distilling spares seemed dear"
            if star.published < star.flops
            else "the teacher's pass was slowed down more than training"
        )
        said.append(
            f"N* of KD for the {star.student} student is {star.published:.0f} as published, {star.flops:.0f} in FLOPs "
            f"and {star.ours:.1f} at measured rates ({star.ours_low:.1f} to {star.ours_high:.1f} over the settings "
            "that were measured). The count in FLOPs is distillation alone: the teacher's pass over the tokens that "
            f"the student is spared. Where the published one differs, {unequal}. So the kilowatt-hours were "
            "utilisation; that a distilled student must be reused several times to pay for its teacher was not."
        )
    if any(s.ours is None for s in stars):
        names = ", ".join(f"{s.pipeline} {s.student}" for s in stars if s.ours is None)
        said.append(f"Nothing is said of {names}: no rate of that kind was measured.")
    if any("by transformers" in w.ours_basis for w in works):
        said.append("Answers were generated by transformers in lock step: a serving engine takes fewer joules.")
    if any(w.ours_basis.startswith("extrapolated") for w in works):
        models = sorted({w.model for w in works if w.ours_basis.startswith("extrapolated")})
        said.append(f"What stands for {', '.join(models)} is extrapolated by FLOPs and marked so.")
    if any("derived" in w.tokens_basis for w in works):
        said.append(
            "Tokens of runs without a log of their own are derived from another pipeline's J/token, so the saving in "
            "tokens is the published saving in energy."
        )
    return " ".join(said)


def as_rows(items: Sequence[Any]) -> list[dict[str, Any]]:
    """Dataclasses as rows of a table."""
    return [asdict(item) for item in items]
