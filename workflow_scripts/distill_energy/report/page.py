"""``report.html``: one page without any outside resource that answers first and then shows how it knows."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..answer.aggregate import read_ledger, read_summary
from ..answer.breakeven import whole_reuses
from ..answer.labels import pipeline_name
from ..answer.summary import FRONTS
from ..energy.host import code_digest
from ..ledger.rows import Problem, counts
from ..store.atomic import write_text
from . import dag
from .findings import findings
from .sentences import comparisons, detail, headline, lead, line, sentence, teller
from .style import drawn, energy_unit, number

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
    """What the ``report`` rule calls. ``inputs`` has ``ledger``, ``summary`` and ``figures`` (SVG paths); ``params``
    may have ``config`` (the configuration's text or mapping) and ``code_digest`` (today's)."""
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
    """Write the page from the ledger, the summary and the figures' SVG files (name → path; missing files are left out).

    ``config``: the configuration's text, shown as given. ``code_digest``: today's, to warn of artifacts of other code.
    """
    rows, problems = read_ledger(ledger)
    places = Path(ledger).with_name("where_it_went.parquet")
    html = render(
        rows,
        read_summary(summary),
        problems,
        figures,
        places=read_summary(places) if places.is_file() else (),
        config=config,
        code_digest=code_digest,
        title=title,
    )
    write_text(out, html)


def render(
    rows: Sequence[Mapping[str, Any]],
    summary: Sequence[Mapping[str, Any]],
    problems: Sequence[Problem],
    figures: Mapping[str, str | Path] | None = None,
    *,
    places: Sequence[Mapping[str, Any]] = (),
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
    told = teller(summary)
    environment.filters |= {"number": number, "percent": percent, "quantity": quantity, "reuses": reuses}
    factor, unit = energy_unit([r[f"e_{v}_kwh"] for r in summary for v in FRONTS])
    environment.filters["kwh"] = lambda value: "unknown" if value is None else number(value * factor)
    figures = figures or {}
    forecast = Path(figures["forecast"]).with_suffix(".csv") if "forecast" in figures else None
    pictures, blank = embedded(figures, findings(rows, summary, places, forecast))
    return environment.get_template("page.html").render(
        title=title,
        lead=lead(summary) or (f"{len(summary)} groups, of which none is compared." if summary else None),
        numbers=numbers(rows, summary),
        headline=headline(summary),
        students=answers(summary),
        shares=shares(rows),
        summary=summary,
        scores=by_benchmark(summary),
        unit=unit,
        words=STATUS_WORDS,
        figures=pictures,
        blank=blank,
        stages=stage_table(rows, told),
        nodes=node_table(rows, told),
        hosts=host_table(rows),
        software=software_table(rows),
        problems=sorted(problems, key=lambda p: (p.kind, p.path)),
        problem_counts=Counter(p.kind for p in problems),
        warnings=warnings(rows, code_digest),
        dag=Markup(dag.svg(rows, told)),
        provenance=provenance(rows, config),
        cite=CITE,
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
        student = row["student"]
        group = {
            "name": pipeline_name(row["pipeline"])
            + row["label"].removeprefix(f"{pipeline_name(row['pipeline'])} {student}"),
            "status": status,
            "badge": badge,
            "line": line(row, summary),
            "text": sentence(row, summary),
            "detail": detail(row, summary),
        }
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


def numbers(rows: Sequence[Mapping[str, Any]], summary: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(name, value, note) of four numbers: all that was spent, its CO2e, what the cheapest way to distil has cost
    against the baseline, and the chance that its artifact has paid."""
    counted = [r for r in rows if counts(r)]
    known = [r["total_j"] for r in counted if r["total_j"] is not None]
    unknown = len(counted) - len(known)
    sources = " and ".join(sorted({r["source"] for r in counted if r["source"]})) or "unknown"
    spent = f"{sources}, {len(counted)} executions" + (f", {unknown} of them unknown" if unknown else "")
    grams = [r["co2e_g"] for r in counted if r["co2e_g"] is not None]
    of = "from these joules" if len(grams) == len(counted) else f"of {len(grams)} of {len(counted)} executions"
    found = [
        ("Energy spent in all", teller(summary)(math.fsum(known) / 3.6e6) if known else "unknown", spent),
        ("CO₂e", quantity(math.fsum(grams), "g") if grams else "unknown", of),
    ]
    best = next((c for c in comparisons(summary) if c["excess"] is not None), None)
    if best is None:
        note = "no distilled student stands beside a baseline of its own"
        return [*found, ("Distilling", "not compared", note), ("Has paid", "unknown", note)]
    share = f"{100 * best['excess']:+.0f}\u202f%".replace("-", "−")
    students = f"{best['students']} student{'s' if best['students'] > 1 else ''}"
    found.append((f"{best['name']} against {best['baseline']}", share, f"energy spent on the same {students}"))
    row = best["row"]
    chance, reused = row["p_pays"], "reuses no teacher artifact" if row["n_reuse"] is None else f"N = {row['n_reuse']}"
    if chance is not None:
        found.append(
            (f"Chance that {best['name']} has paid", percent(chance, 0), f"for its teacher artifact, {reused}")
        )
    else:
        found.append((f"Reuses of {best['name']}", reused, "no chance is told without an interval"))
    return found


def shares(rows: Sequence[Mapping[str, Any]]) -> str:
    """How much of all energy the idle host drew and attempts wasted, in a sentence."""
    counted = [r for r in rows if counts(r) and r["total_j"] is not None]
    spent = math.fsum(r["total_j"] for r in counted)
    texts = []
    for column, words in (("idle_j", "drawn by the idle host"), ("wasted_j", "wasted by failed, killed and preempted")):
        # What was made a second time was made for nothing, whatever its own record says of it.
        again = column == "wasted_j"
        values = [r["total_j"] if again and r["status"] == "duplicate" else r[column] for r in counted]
        share = percent(math.fsum(values) / spent) if spent and None not in values else "an unknown share"
        texts.append(f"{share} was {words}" + (" attempts" if column == "wasted_j" else ""))
    return f"Of all energy {' and '.join(texts)}."


#: How the software and the method are cited (CITATION.cff).
CITE = (
    "Lambert and Luccioni (2026): Towards Resource-Efficient LLMs: End-to-End Energy Accounting of Distillation"
    " Pipelines. ICML 2026, arXiv 2605.13981."
)


def provenance(rows: Sequence[Mapping[str, Any]], config: str | None) -> list[tuple[str, str]]:
    """(what, value): when, by which code and from which configuration the page's records were made."""
    counted = [r for r in rows if counts(r)]
    started = sorted(r["started_utc"] for r in counted if r["started_utc"])
    ended = sorted(r["created_utc"] for r in counted if r["created_utc"])
    found = []
    if started and ended:
        first, last = (t[:16].replace("T", " ") for t in (started[0], ended[-1]))
        found.append(("Measured (UTC)", f"{first} to {last}"))
    commits = Counter(r["git_commit"] for r in counted if r["git_commit"])
    if commits:
        dirty = any(r["git_dirty"] for r in counted)
        names = ", ".join(commit[:12] for commit, _ in commits.most_common(5))
        found.append(("Commit", names + (", with uncommitted changes" if dirty else "")))
    if config is not None:
        found.append(("Configuration", f"SHA-256 {hashlib.sha256(config.encode()).hexdigest()[:12]}, shown below"))
    found.append(("Software", f"distill-energy {_version()}"))
    return found


def _version() -> str:
    try:
        return version("distill-energy")
    except PackageNotFoundError:  # run from the sources
        return "(not installed)"


def reuses(value: float | None, status: str) -> str:
    """A break-even count as the sentences tell it, in whole reuses; a dash where there is none."""
    return f"{whole_reuses(value):,}".replace(",", "\u202f") if status == "finite" and value is not None else "–"


def quantity(value: float | None, unit: str) -> str:
    """A value with a unit, in kilo- where large."""
    if value is None:
        return "unknown"
    return f"{number(value / 1000)} k{unit}" if abs(value) >= 1000 else f"{number(value)} {unit}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    if value is None:
        return "unknown"
    return f"{100 * value:.{digits}f}\u202f%"


def embedded(
    figures: Mapping[str, str | Path], said: Mapping[str, str]
) -> tuple[list[dict[str, str]], list[tuple[str, str]]]:
    """(figures as data URIs in the page's order, (heading, reason) of those that have nothing to draw). ``said``: their
    findings. A path that does not exist is left out."""
    found, blank = [], []
    for name, (heading, caption) in FIGURES.items():
        path = figures.get(name)
        if path is None or not Path(path).is_file():
            continue
        svg = Path(path).read_text(encoding="utf-8")
        anything, why = drawn(svg)
        if not anything:
            blank.append((heading, why))
            continue
        uri = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
        finding = said.get(name, "")
        alt = f"{heading}. {finding or caption}"
        found.append({"name": name, "heading": heading, "finding": finding, "caption": caption, "alt": alt, "uri": uri})
    return found, blank


def stage_table(rows: Sequence[Mapping[str, Any]], told: Callable[[float | None], str]) -> list[dict[str, Any]]:
    """Measurement quality and totals by stage."""
    by_stage: dict[str, list] = defaultdict(list)
    for row in rows:
        if counts(row):
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
                "energy": told(math.fsum(energies) / 3.6e6) if known else "unknown",
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


def node_table(rows: Sequence[Mapping[str, Any]], told: Callable[[float | None], str]) -> list[dict[str, Any]]:
    """The node's own meter beside the sum of its parts, by stage; empty where no execution had one."""
    by_stage: dict[str, list] = defaultdict(list)
    for row in rows:
        if counts(row) and row["node_j"] is not None:
            by_stage[row["stage"]].append(row)
    table = []
    for stage, members in by_stage.items():
        node = math.fsum(m["node_j"] for m in members)
        shares = [m["node_explained"] for m in members]
        parts = None
        if None not in shares and node > 0:
            parts = math.fsum(m["node_j"] * share for m, share in zip(members, shares, strict=True))
        table.append(
            {
                "stage": stage,
                "count": len(members),
                "node": told(node / 3.6e6),
                "parts": "unknown" if parts is None else told(parts / 3.6e6),
                "explained": percent(None if parts is None else parts / node, 0),
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
        for name, which in json.loads(row["software"] or "{}").items():
            versions[name].add(which)
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
    for row in rows:
        if row["status"] == "ok" and row["left_out"]:
            found.append(f"Rows that are not in {row['name']}: {row['left_out']}.")
    return found
