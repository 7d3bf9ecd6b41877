"""The commands of ``python -m distill_energy``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from ..answer.aggregate import answer, print_summary_csv, read_summary, reopened
from ..answer.breakeven import whole_reuses
from ..answer.experiments import FOLDER, compare
from ..config.describe import json_schema
from ..config.load import load_config, parse_config
from ..errors import UserError
from ..ledger.rows import counts
from ..published.importer import import_runs
from ..published.replay import verdict
from ..store.sidecar import STAGES, read
from . import alone
from .export import codecarbon, latex
from .forecast import lines, make, write
from .init import questions
from .init import write as write_config
from .page import STATUS_WORDS
from .paper import write_paper
from .sentences import detail, energy, headline, overhead, sentence
from .style import energy_unit, number
from .verify import verify


def build_parser(apart: Iterable[str] = ()) -> argparse.ArgumentParser:
    """The argument parser; each command sets ``run``. ``apart``: commands that are run elsewhere, for the help."""
    parser = argparse.ArgumentParser(prog="distill-energy", description=__doc__)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in apart:
        commands.add_parser(name, help=f"see distill-energy {name} --help", add_help=False)

    summary = commands.add_parser("summary", help="read results without Snakemake: the answer in words and a table")
    summary.add_argument("roots", nargs="+", type=Path, help="results folders (and a teacher store)")
    summary.add_argument(
        "--config", type=Path, help="the config.yaml of the run (baseline, benchmarks of Q, confidence)"
    )
    summary.add_argument("--current", type=Path, help="JSON list of [stage, name, version] to restrict the answer to")
    summary.add_argument("--all", action="store_true", help="every sidecar, not only those of the last aggregate")
    forms = summary.add_mutually_exclusive_group()
    forms.add_argument("--csv", action="store_true", help="print the whole summary as CSV")
    forms.add_argument("--latex", action="store_true", help="print the table for LaTeX (booktabs)")
    forms.add_argument("--codecarbon", action="store_true", help="print every execution with CodeCarbon's columns")
    summary.add_argument("--brief", action="store_true", help="the verdicts and the table, and where the page lies")
    summary.set_defaults(run=run_summary)

    start = commands.add_parser("init", help="five questions become a configuration that validates, with its forecast")
    start.add_argument("--out", type=Path, default=Path("mine.yaml"), help="file to write, which must not exist")
    start.add_argument("--defaults", action="store_true", help="ask nothing")
    start.set_defaults(run=run_init)

    schema = commands.add_parser("schema", help="JSON schema of the configuration, for editors")
    schema.set_defaults(run=run_schema)

    single = commands.add_parser("stage", help="run one stage in this process, outside Snakemake (for a debugger)")
    single.add_argument("folder", type=Path, help="results/STAGE/NAME/VERSION, as Snakemake's dry run names it")
    single.add_argument("--config", type=Path, default=Path("config.yaml"))
    single.add_argument("--dry-run", action="store_true", help="print the work, its parameters and its inputs")
    single.set_defaults(run=run_stage_alone)

    side = commands.add_parser("compare", help="two studies side by side: energies, Q, N* and what differs")
    side.add_argument("a", type=Path, help="a results folder, or an experiment's (results/experiments/NAME)")
    side.add_argument("b", type=Path)
    side.set_defaults(run=run_compare)

    check = commands.add_parser(
        "verify", help="records, digests, provenance and conservation of results; exit status 1"
    )
    check.add_argument("roots", nargs="+", type=Path, help="results folders (and a teacher store)")
    check.add_argument("--repair", action="store_true", help="print what to remove so that it is made again")
    check.set_defaults(run=run_verify)

    before = commands.add_parser("preflight", help="what can be known to be wrong before anything is paid for")
    before.add_argument("config", type=Path, help="config.yaml, or - for JSON on standard input")
    before.add_argument("--results", type=Path, default=Path("results"), help="the results folder")
    before.set_defaults(run=run_preflight)

    replay = commands.add_parser("replay", help="the published stage table through the same accounting")
    replay.add_argument("table", type=Path, help="configs/paper_table.yaml")
    replay.add_argument("out", type=Path, help="folder for figures and tables, such as results/paper")
    replay.set_defaults(run=run_replay)

    importer = commands.add_parser("import", help="stage logs of the public reference harness as sidecars")
    importer.add_argument("runs", nargs="+", type=Path, help="run folders of the harness (with stages/<id>/<id>.json)")
    importer.add_argument("--out", type=Path, default=Path("results"), help="results folder to write into")
    importer.add_argument("--stage", choices=STAGES, help="the kind of stage, where its name does not tell")
    for label in ("pipeline", "teacher", "student"):
        importer.add_argument(f"--{label}", help=f"the {label}, where the names do not tell")
    importer.add_argument("--dataset", help="the data set, where no configuration tells")
    importer.add_argument("--seed", type=int)
    text = "let trainings in whose teacher artifact was not logged; their totals are then unknown"
    importer.add_argument("--missing-teacher", action="store_true", help=text)
    importer.set_defaults(run=run_import)

    forecast = commands.add_parser("forecast", help="energy, time, storage and CO2e of a configuration, before it runs")
    forecast.add_argument("config", type=Path)
    forecast.add_argument("--results", type=Path, default=Path("results"), help="where a calibration may lie")
    forecast.add_argument("--earlier", type=Path, help="an earlier ledger.parquet, whose rates replace the FLOPs")
    forecast.add_argument("--rates", help="rates that were measured (rates.parquet, or a shipped one's name)")
    forecast.add_argument("--preset", help="a hardware preset instead of the host's calibration")
    forecast.add_argument("--out", type=Path, help="folder for forecast.pdf, .png and .csv")
    forecast.set_defaults(run=run_forecast)
    return parser


def run_init(options: argparse.Namespace) -> int:
    """Ask, write, forecast."""

    def ask(question: str, default: str) -> str:
        if options.defaults:
            return default
        try:
            return input(f"{question} [{default}]: ").strip() or default
        except EOFError:
            return default

    config = write_config(options.out, questions(ask))
    print(f"{options.out} is written. What it would take, from FLOPs and presets:\n")
    for line in lines(make(config)):
        print(line)
    print(f"\nNext: snakemake --cores all results/pareto.pdf --configfile {options.out}")
    return 0


def run_schema(options: argparse.Namespace) -> int:
    """Print the schema that pydantic validates with."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def run_stage_alone(options: argparse.Namespace) -> int:
    """Describe or run one stage."""
    spec = alone.find(options.folder, options.config)
    if options.dry_run:
        for line in alone.described(spec):
            print(line)
        return 0
    alone.run(spec)
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Print the groups of two written summaries side by side."""
    sides = []
    for folder in (options.a, options.b):
        if not (folder / "summary.parquet").is_file():
            raise UserError(f"{folder}: holds no summary.parquet (run the study, or name results/experiments/NAME)")
        sides.append(read_summary(folder / "summary.parquet"))
    rows = compare(*sides)
    factor, unit = energy_unit([row[f"{side}_e_kwh"] for row in rows for side in "ab"])

    def shown(value, scale=1.0):
        return "–" if value is None else number(value * scale)

    table = [("group", f"A one-off ({unit})", "B", "B/A", "A Q", "B Q", "B−A", "A N*", "B N*", "")]
    for row in rows:
        states = {side: row[f"{side}_n_star_status"] for side in "ab"}
        stars = [number(row[f"{s}_n_star"]) if state == "finite" else state or "–" for s, state in states.items()]
        table.append(
            (
                row["label"],
                *(shown(row[f"{side}_e_kwh"], factor) for side in "ab"),
                shown(row["energy_ratio"]),
                *("–" if row[f"{side}_q"] is None else f"{row[f'{side}_q']:.3f}" for side in "ab"),
                "–" if row["q_difference"] is None else f"{row['q_difference']:+.3f}",
                *stars,
                row["reason"] or "",
            )
        )
    print(f"A: {options.a}\nB: {options.b}\n")
    for line in columns(table):
        print(line)
    return 0


def columns(table: list[tuple[str, ...]]) -> list[str]:
    """Rows of texts with their columns aligned."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def run_verify(options: argparse.Namespace) -> int:
    """Print what was checked and what is wrong; 1 if anything is."""
    for root in options.roots:
        if not root.is_dir():
            raise UserError(f"{root}: is not a folder of results")
    findings, checked = verify(options.roots)
    for line in checked:
        print(line)
    for finding in findings:
        print(f"wrong: {finding.message}")
    if options.repair:
        for folder in sorted({finding.remake for finding in findings if finding.remake}):
            print(f"rm {folder}/energy.json   # then run Snakemake: what is not whole is made again")
    print("whole" if not findings else f"{len(findings)} wrong")
    return 1 if findings else 0


def run_preflight(options: argparse.Namespace) -> int:
    """Print what was looked at and what is wrong, a line each; 1 if anything is."""
    from ..plan import build_plan
    from ..preflight import preflight  # loads torch and transformers

    if str(options.config) == "-":  # a configuration that Snakemake has read already
        config, name = parse_config(json.load(sys.stdin)), "preflight"
    else:
        config, name = load_config(options.config), str(options.config)
    found = preflight(config, build_plan(config, str(options.results)), options.results)
    for line in found.checked if name != "preflight" else ():
        print(f"looked at: {line}")
    for line in found.warnings:
        print(f"{name}: warning: {line}")
    for line in found.wrong:
        print(f"{name}: wrong: {line}")
    known = "nothing is wrong, as far as can be known before it runs"
    print(f"{name}: {f'{len(found.wrong)} wrong; nothing was spent' if found.wrong else known}")
    return 1 if found.wrong else 0


def run_import(options: argparse.Namespace) -> int:
    """Import and print a line a stage."""
    labels = {key: getattr(options, key) for key in ("stage", "pipeline", "teacher", "student", "dataset", "seed")}
    found = import_runs(options.runs, options.out, **labels, missing_teacher=options.missing_teacher)
    for folder in found.folders:
        sidecar = read(folder / "energy.json")
        spent, source = sidecar.energy.gross_j, sidecar.energy.source
        flags = f" [{', '.join(sidecar.quality.flags)}]" if sidecar.quality.flags else ""
        print(f"{folder}: {energy(None if spent is None else spent / 3.6e6)}, {source}{flags}")
        for note in sidecar.quality.notes:
            print(f"    {note}")
    for folder, joules in found.killed:
        print(f"{folder}: {energy(None if joules is None else joules / 3.6e6)}, a killed attempt: wasted")
    for item in found.left:
        spent = "" if item.joules is None else f" ({energy(item.joules / 3.6e6)})"
        print(f"left out: {item.path}{spent}: {item.why}")
    lost = sum(item.joules or 0.0 for item in found.left)
    what = f"{len(found.folders)} stages and {len(found.killed)} killed attempts imported"
    print(f"{what}; {len(found.left)} records left out, {energy(lost / 3.6e6) if lost else 'no joules'} among them")
    return 0


def run_forecast(options: argparse.Namespace) -> int:
    """Print the forecast and, with ``--out``, write its figure and table."""
    ledger = options.results / "ledger.parquet"
    result = make(
        load_config(options.config),
        options.results,
        preset_name=options.preset,
        earlier=options.earlier,
        rates=options.rates,
        ledger=ledger if ledger.is_file() else None,
    )
    for line in lines(result):
        print(line)
    if options.out:
        write(result, options.out / "forecast.pdf", options.out / "forecast.png", options.out / "forecast.csv")
    return 0


def run_summary(options: argparse.Namespace) -> int:
    """Print one sentence a group, the energies and Q as a table, and the problems found."""
    for root in options.roots:
        if not root.is_dir():
            raise UserError(f"{root}: is not a folder of results")
    given = None if options.config is None else load_config(options.config)
    if given is not None and given.experiment and options.roots[0].parent.name != FOLDER:
        options.roots[0] = options.roots[0] / FOLDER / given.experiment
    roots, used = reopened(options.roots, options.all)
    if given is not None:
        used["config"] = given.model_dump(mode="json")
    if options.current:
        used["current"] = options.current
    rows, summary, problems = answer(roots, **used)
    if not rows:
        raise UserError(f"{options.roots[0]}: holds no sidecar (expected <stage>/<name>/<version>/energy.json)")
    if options.csv:
        print_summary_csv(sys.stdout, summary)
        return 0
    if options.latex or options.codecarbon:
        print(latex(summary) if options.latex else codecarbon(rows), end="")
        return 0
    for line in text_answer(rows, summary, problems, options.brief):
        print(line)
    page = options.roots[0] / "report.html"
    if options.brief and page.is_file():
        print(f"\nThe page: {page}. Everything in words: distill-energy summary {options.roots[0]}")
    return 0


def text_answer(rows, summary, problems, brief: bool = False) -> list[str]:
    """The answer as lines of text; ``brief``: a sentence a group without its details."""
    lines = headline(summary)
    lines += [""] if lines else []
    for row in summary:
        lines.append(sentence(row, summary))
        if not brief and (text := detail(row, summary)):
            lines.append(f"    {text}")
    factor, unit = energy_unit([row[f"e_{v}_kwh"] for row in summary for v in _VIEWS])
    header = (
        "group",
        "seeds",
        f"one-off ({unit})",
        "amortised",
        "marginal",
        "campaign",
        "Q",
        "N",
        "N*",
        "verdict",
        "front",
    )
    table = [header]
    for row in summary:
        star = str(whole_reuses(row["n_star"])) if row["n_star_status"] == "finite" else "–"
        table.append(
            (
                row["label"],
                str(row["seeds"]),
                *("–" if row[f"e_{v}_kwh"] is None else number(row[f"e_{v}_kwh"] * factor) for v in _VIEWS),
                "unknown" if row["q"] is None else f"{row['q']:.3f}",
                "–" if row["n_reuse"] is None else str(row["n_reuse"]),
                "–" if row["is_baseline"] else star,
                "baseline" if row["is_baseline"] else STATUS_WORDS[row["n_star_status"]],
                {True: "yes", False: "dominated", None: "–"}[row["on_front_oneoff"]],
            )
        )
    lines += ["", *columns(table)]
    counted = [r for r in rows if counts(r)]
    known = [r["total_j"] for r in counted]
    share = overhead(counted)
    harness = "" if share is None else f"; starting, loading and writing took {100 * share:.0f} % of it"
    spent = sum(v for v in known if v is not None) / 3.6e6
    unknown = sum(v is None for v in known)
    lines += [
        "",
        f"{len(known)} executions spent {energy(spent)}"
        + (f" and {unknown} an unknown energy" if unknown else "")
        + harness,
    ]
    if problems:
        lines += ["", f"{len(problems)} problem(s):", *(f"  {p.kind}: {p.message}" for p in problems)]
    return lines


_VIEWS = ("oneoff", "amortised", "marginal", "campaign")


def run_replay(options: argparse.Namespace) -> int:
    """Write the published table's figures and the comparison."""
    rows = write_paper(options.table, options.out)
    for row in rows:
        mark = {True: "agrees", False: "DIFFERS", None: "no value"}[row["agrees"]]
        ours = "–" if row["ours"] is None else f"{row['ours']:.2f}"
        cells = (
            row["quantity"].ljust(32),
            row["pipeline"].ljust(10),
            row["student"].ljust(4),
            row["published"].ljust(26),
        )
        print(*cells, ours.rjust(7), mark, f"({row['note']})" if row["note"] else "")
    print(verdict(rows))
    return 0
