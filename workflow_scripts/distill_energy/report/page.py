"""``report.html``: one page without any outside resource that answers first and then shows how it knows."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..answer.aggregate import read_ledger, read_summary
from ..answer.summary import FRONTS
from ..energy.host import code_digest
from ..ledger.rows import OUTSIDE, Problem
from ..store.atomic import write_text
from . import dag
from .sentences import detail, energy, headline, sentence
from .style import energy_unit, number

FIGURES = {
    "pareto": (
        "Energy against quality",
        "Points to the upper left are better. Hollow points are dominated: another "
        "student costs no more and is no worse.",
    ),
    "stage_breakdown": ("Energy by stage", "One bar for each pipeline and student, the teacher counted whole."),
    "where_it_went": (
        "Where every joule went",
        "All that was spent, by place, and within each by phase: starting, loading and writing are the harness's own.",
    ),
    "amortization": (
        "What reuse does",
        "The teacher's artifact is paid for once. A pipeline has paid off where its "
        "curve falls below the baseline's line.",
    ),
    "trajectories": ("Energy to quality", "Evaluation loss against the energy spent on training so far."),
    "sweep": ("Sweeps", "Quality and training energy over the settings that were tried."),
    "power": ("Power over time", "Measured or estimated power of each stage's longest execution."),
    "forecast": ("Forecast and measurement", "What was predicted before the run, beside what was measured."),
}
STATUS_WORDS = {
    "finite": "pays back",
    "never": "never pays back",
    "undecided": "undecided",
    "unknown": "unknown",
}


def main(inputs: Any, out: str | Path, params: Any = None, log: Callable[[str], None] = print) -> None:
    """What the ``report`` rule calls. ``inputs`` has ``ledger``, ``summary`` and ``figures`` (PNG paths); ``params``
    may
    have ``config`` (the configuration's text or mapping) and ``code_digest`` (today's)."""
    paths = inputs.figures if not isinstance(inputs.figures, str | Path) else [inputs.figures]
    figures = {Path(path).stem: path for path in paths}
    config = getattr(params, "config", None)
    if config is not None and not isinstance(config, str):
        import yaml

        config = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    digest = getattr(params, "code_digest", None) or _todays_digest()
    write_page(inputs.ledger, inputs.summary, figures, out, config=config, code_digest=digest)
    log(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB, {len(figures)} figures")


def _todays_digest() -> str:
    return code_digest()


def write_page(
    ledger: str | Path,
    summary: str | Path,
    figures: Mapping[str, str | Path],
    out: str | Path,
    config: str | None = None,
    code_digest: str | None = None,
    title: str = "What distillation costs",
) -> None:
    """Write the page from the ledger, the summary and the figures' PNG files (name → path; missing files are left out).

    ``config``: the configuration's text, shown as given. ``code_digest``: today's, to warn of artifacts of other code.
    """
    rows, problems = read_ledger(ledger)
    html = render(rows, read_summary(summary), problems, figures, config=config, code_digest=code_digest, title=title)
    write_text(out, html)


def render(
    rows: Sequence[Mapping[str, Any]],
    summary: Sequence[Mapping[str, Any]],
    problems: Sequence[Problem],
    figures: Mapping[str, str | Path] | None = None,
    *,
    config: str | None = None,
    code_digest: str | None = None,
    title: str = "What distillation costs",
) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"energy": energy, "number": number, "percent": percent, "quantity": quantity}
    factor, unit = energy_unit([r[f"e_{v}_kwh"] for r in summary for v in FRONTS])
    environment.filters["kwh"] = lambda value: "unknown" if value is None else number(value * factor)
    return environment.get_template("page.html").render(
        title=title,
        headline=headline(summary),
        students=answers(summary),
        totals=totals(rows),
        summary=summary,
        scores=by_benchmark(summary),
        unit=unit,
        words=STATUS_WORDS,
        figures=embedded(figures or {}),
        stages=stage_table(rows),
        hosts=host_table(rows),
        software=software_table(rows),
        problems=sorted(problems, key=lambda p: (p.kind, p.path)),
        problem_counts=Counter(p.kind for p in problems),
        warnings=warnings(rows, code_digest),
        dag=Markup(dag.svg(rows)),
        config=config,
        level=f"{100 * summary[0]['confidence']:.3g} %" if summary and summary[0]["confidence"] else "95\u202f%",
        data=Markup(json.dumps(_plain(summary), ensure_ascii=True).replace("<", "\\u003c")),
    )


def _plain(summary) -> list[dict[str, Any]]:
    keep = ("label", "e_oneoff_kwh", "e_amortised_kwh", "e_marginal_kwh", "q", "n_reuse", "n_star", "n_star_status")
    return [{k: row[k] for k in keep} for row in summary]


def verdict(row: Mapping[str, Any]) -> tuple[str, str]:
    """(class, words) of a group's badge."""
    if row["is_baseline"]:
        return "baseline", "baseline"
    status = row["n_star_status"]
    if status == "finite" and row["n_reuse"] is not None:
        return ("paid", "has paid back") if (row["balance_kwh"] or -1) >= 0 else ("open", "not yet")
    return status, STATUS_WORDS.get(status, status)


def answers(summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By student (and data set, where several): each group's status and sentences, the baseline first."""
    many = len({r["dataset"] for r in summary}) > 1
    students: dict[tuple, list[dict[str, Any]]] = {}
    for row in summary:
        status, badge = verdict(row)
        group = {"status": status, "badge": badge, "text": sentence(row, summary), "detail": detail(row, summary)}
        students.setdefault((row["dataset"], row["student"]), []).append(group)
    return [
        {"name": student + (f" on {dataset}" if many else ""), "groups": groups}
        for (dataset, student), groups in students.items()
    ]


def by_benchmark(summary: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, list[tuple]]]]:
    """(benchmarks, (label, its cells) by group); a cell is (ratio to the reference's score or None, whether it is below
    the baseline's ratio). Point estimates: the intervals are of Q and ΔQ."""
    ratios = {row["group"]: json.loads(row["q_by_benchmark"] or "{}") for row in summary}
    names = sorted({name for found in ratios.values() for name in found})
    lines = []
    for row in summary:
        base = {} if row["is_baseline"] else ratios.get(row["baseline_group"], {})
        own = ratios[row["group"]]
        cells = [(own.get(n), n in own and n in base and own[n] < base[n]) for n in names]
        lines.append((row["label"], cells))
    return names, lines


def totals(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(name, value, note) of everything that was spent, in the configuration or not."""
    counted = [r for r in rows if r["status"] not in OUTSIDE]
    unknown = sum(r["total_j"] is None for r in counted)
    note = f"and {unknown} execution{'s' if unknown > 1 else ''} of unknown energy" if unknown else "of all executions"

    def whole(column: str) -> float | None:
        values = [r[column] for r in counted if r["total_j"] is not None]
        return None if any(v is None for v in values) else math.fsum(values)

    spent = math.fsum(r["total_j"] for r in counted if r["total_j"] is not None)
    idle, wasted = whole("idle_j"), whole("wasted_j")
    co2 = [r["co2e_g"] for r in counted]
    known = [c for c in co2 if c is not None]
    result = [("Energy spent", energy(spent / 3.6e6), f"{note} ({len(counted)})")]
    result.append(
        (
            "Idle",
            percent(idle / spent) if idle is not None and spent else "unknown",
            "share of it drawn by the idle host",
        )
    )
    result.append(
        (
            "Wasted",
            percent(wasted / spent) if wasted is not None and spent else "unknown",
            "share of failed, killed and preempted attempts",
        )
    )
    grams = "unknown" if not known else quantity(math.fsum(known), "g")
    result.append(
        ("CO₂e", grams, "from these joules" if len(known) == len(co2) else f"of {len(known)} of {len(co2)} executions")
    )
    sources = Counter(r["source"] for r in counted)
    result.append(("Source", " and ".join(sorted(s for s in sources if s)) or "unknown", "of the joules"))
    return result


def quantity(value: float | None, unit: str) -> str:
    """A value with a unit, in kilo- where large."""
    if value is None:
        return "unknown"
    return f"{number(value / 1000)} k{unit}" if abs(value) >= 1000 else f"{number(value)} {unit}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    if value is None:
        return "unknown"
    return f"{100 * value:.1f}\u202f%"


def embedded(figures: Mapping[str, str | Path]) -> list[dict[str, str]]:
    """Figures as data URIs, in the page's order; a path that does not exist is left out."""
    found = []
    for name, (heading, caption) in FIGURES.items():
        path = figures.get(name)
        if path is None or not Path(path).is_file():
            continue
        content = base64.b64encode(Path(path).read_bytes()).decode()
        found.append({"name": name, "heading": heading, "caption": caption, "uri": f"data:image/png;base64,{content}"})
    return found


def stage_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measurement quality and totals by stage."""
    by_stage: dict[str, list] = defaultdict(list)
    for row in rows:
        if row["status"] not in OUTSIDE:
            by_stage[row["stage"]].append(row)
    table = []
    for stage, members in by_stage.items():
        energies = [m["total_j"] for m in members]
        walls = [m["wall_s"] for m in members]
        coverage = [m["coverage"] for m in members if m["coverage"] is not None]
        gaps = [m["largest_gap_s"] for m in members if m["largest_gap_s"] is not None]
        errors = [m["error_j"] for m in members]
        known = None not in energies
        bound = (
            math.fsum(errors) / math.fsum(energies) if known and None not in errors and math.fsum(energies) else None
        )
        table.append(
            {
                "stage": stage,
                "count": len(members),
                "energy": energy(math.fsum(energies) / 3.6e6) if known else "unknown",
                "wall": duration(math.fsum(walls)) if None not in walls else "unknown",
                "sources": ", ".join(f"{n} {s}" for s, n in sorted(Counter(m["source"] for m in members).items())),
                "coverage": f"{100 * min(coverage):.1f} %" if coverage else "unknown",
                "gap": f"{max(gaps):.1f} s" if gaps else "unknown",
                "error": f"± {100 * bound:.0f} %" if bound is not None else "unknown",
                "flags": ", ".join(
                    f"{f} ({n})" for f, n in sorted(Counter(f for m in members for f in m["flags"]).items())
                )
                or "none",
            }
        )
    return table


def duration(seconds: float) -> str:
    """Seconds as h min s."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


def host_table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int, str]]:
    """(host, hardware, executions, grid) of every host that spent energy."""
    counts = Counter((r["host"] or "unknown", r["hardware"] or "unknown", _grid(r)) for r in rows)
    return [(host, hardware, count, grid) for (host, hardware, grid), count in sorted(counts.items())]


def _grid(row: Mapping[str, Any]) -> str:
    if row["intensity_g_per_kwh"] is None:
        return "unknown"
    pue = "" if row["pue"] is None else f", PUE {row['pue']:g}"
    return f"{row['intensity_g_per_kwh']:g} g/kWh ({row['grid_source'] or 'source unknown'}){pue}"


def software_table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(package, its versions) over all executions."""
    versions: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for name, version in json.loads(row["software"] or "{}").items():
            versions[name].add(version)
    return [(name, ", ".join(sorted(v))) for name, v in sorted(versions.items())]


def warnings(rows: Sequence[Mapping[str, Any]], code_digest: str | None) -> list[str]:
    """What a reader should know before trusting the numbers."""
    found = []
    counted = [r for r in rows if r["status"] in ("ok", "consumes_missing")]
    other = [r for r in counted if code_digest and r["code_digest"] and r["code_digest"] != code_digest]
    if other:
        found.append(f"{len(other)} of {len(counted)} executions were made by other code than today's.")
    if dirty := sum(bool(r["git_dirty"]) for r in counted):
        found.append(f"{dirty} of {len(counted)} executions were made with uncommitted changes.")
    if estimated := sum(r["source"] == "estimated" for r in counted):
        found.append(f"{estimated} of {len(counted)} executions have estimated, not measured, joules.")
    for flag, text in (
        ("gap", "gaps in their power trace"),
        ("disputed", "two methods that disagree"),
        ("shared_device", "devices shared with other jobs"),
    ):
        if count := sum(flag in (r["flags"] or []) for r in counted):
            found.append(f"{count} of {len(counted)} executions have {text}.")
    return found
