"""``python -m distill_energy.energy``: measure a command, measure idle power, export a sidecar, show an attempt."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..store.sidecar import wall_seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m distill_energy.energy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure a command: run [options] -- COMMAND ARGUMENT…")
    run.add_argument("--out", default="results", help="folder of results (default: results)")
    run.add_argument("--name", help="name of the measurement (default: the command's)")
    run.add_argument("--node", metavar="COMMAND", help="command that prints the whole node's watts, shown beside")
    run.add_argument("--node-csv", metavar="FILE", help="CSV of utc and watts of the whole node, shown beside")
    run.add_argument("--idle", help="idle baseline: idle.parquet of a prerun on this host")
    _grid_options(run)
    _meter_options(run)
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    idle = commands.add_parser("idle", help="measure what this host draws when idle")
    idle.add_argument("--seconds", type=float, default=30.0)
    idle.add_argument("--out", help="write idle.parquet here")
    _meter_options(idle)
    test = commands.add_parser("selftest", help="known loads on this machine: does what is read of them hang together?")
    test.add_argument("--seconds", type=float, default=8.0, help="of each of the four loads (default: 8)")
    _meter_options(test)
    watch = commands.add_parser("watch", help="one screen: watts by device, and the measured work that runs here")
    watch.add_argument("results", nargs="?", default="results", help="folder of results (default: results)")
    watch.add_argument("--seconds", type=float, help="end after so long (default: until interrupted)")
    _grid_options(watch)
    _meter_options(watch, interval=2.0)
    export = commands.add_parser("boamps", help="a sidecar as a BoAmps report, on standard output")
    export.add_argument("sidecar", help="path of an energy.json")
    export.add_argument("--out", help="write the report here instead")
    show = commands.add_parser("attempts", help="the attempts under a folder, as JSON lines")
    show.add_argument("folder")
    return parser


def _grid_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--country", help="ISO 3166 alpha-3, for CO2e")
    parser.add_argument("--region", help="region of the country")
    parser.add_argument("--g-per-kwh", type=float, help="grid intensity instead of a country")
    parser.add_argument("--pue", type=float, default=1.0, help="power usage effectiveness (default: 1)")


def _grid(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``co2e``; a wrong country is said before an hour is measured, not after."""
    from .co2 import co2e

    grid = dict(pue=options.pue, country=options.country, region=options.region, intensity=options.g_per_kwh)
    co2e(None, **grid)
    return grid


def _meter_options(parser: argparse.ArgumentParser, interval: float = 0.5) -> None:
    text = f"seconds between samples (default: {interval:g})"
    parser.add_argument("--interval", type=float, default=interval, help=text)
    parser.add_argument("--jitter", type=float, default=0.0, help="random share of the interval (default: 0)")
    parser.add_argument("--cpu", default="auto", help="auto, rapl, codecarbon or off (default: auto)")


def main(arguments: list[str] | None = None) -> int:
    """Exit code: the command's own for ``run``, 2 on bad input."""
    options = _parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _config(options: argparse.Namespace):
    from .config import MeterConfig

    node = {"command": getattr(options, "node", None), "csv": getattr(options, "node_csv", None)}
    if all(node.values()):
        raise UserError("run: give one of --node and --node-csv")
    node = node if any(node.values()) else None
    return MeterConfig(interval_s=options.interval, jitter=options.jitter, cpu=options.cpu, node=node)


class _WithoutPandas:
    """Arrow loads pandas where it is installed, for tables that a command has not: 0.2 s and 60 MB beside each."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is left out of this process", name=name)


def _run(options: argparse.Namespace) -> int:
    sys.meta_path.insert(0, _WithoutPandas())
    from .command import run_command
    from .idle import IdleBaseline

    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not argv:
        raise UserError("run: no command; write it after --")
    grid = _grid(options)
    idle = IdleBaseline.read(options.idle) if options.idle else None
    live = sys.stderr if sys.stderr.isatty() else None
    record, code = run_command(argv, options.out, options.name, _config(options), grid, idle, live)
    energy = record.energy
    said = f"{energy.gross_j:.1f} J ({energy.source})" if energy.gross_j is not None else f"unknown: {energy.reason}"
    wall = wall_seconds(record.attempts) or 0.0
    flags = f", flags: {', '.join(record.quality.flags)}" if record.quality.flags else ""
    where = Path(options.out) / "command" / record.name / record.version / "energy.json"
    _say_node(energy)
    print(f"energy: {said} in {wall:.1f} s{flags}; {where}", file=sys.stderr)
    return code


def _say_node(energy: Any) -> None:
    for part in energy.components:
        if part.component == "node":
            share = "" if energy.node_explained is None else f", of which the parts explain {energy.node_explained:.0%}"
            said = f"unknown: {part.reason}" if part.gross_j is None else f"{part.gross_j:.1f} J{share}"
            print(f"node: {said}", file=sys.stderr)


def _idle(options: argparse.Namespace) -> int:
    from .idle_window import measure_idle

    baseline = measure_idle(_config(options), options.seconds)
    for device, watts in baseline.watts.items():
        print(f"{device}: {f'{watts:.2f} W' if watts is not None else f'unknown ({baseline.reasons.get(device)})'}")
    if options.out:
        baseline.write(options.out)
    return 0


def _watch(options: argparse.Namespace) -> int:
    from .watch import watch

    watch(_config(options), options.results, _grid(options), options.seconds)
    return 0


def _selftest(options: argparse.Namespace) -> int:
    from .selftest import selftest

    wrong = selftest(_config(options), options.seconds)
    print()
    for line in wrong:
        print(f"wrong: {line}")
    print(f"{len(wrong)} wrong" if wrong else "pass")
    return 1 if wrong else 0


def _boamps(options: argparse.Namespace) -> int:
    from ..store import atomic
    from ..store.sidecar import read
    from .boamps import to_boamps

    text = json.dumps(to_boamps(read(options.sidecar)), indent=1) + "\n"
    if options.out:
        atomic.write_text(options.out, text)
    else:
        print(text, end="")
    return 0


def _attempts(options: argparse.Namespace) -> int:
    from .attempts import attempts_of

    for attempt in attempts_of(options.folder):
        print(attempt.model_dump_json())
    return 0


_COMMANDS = {
    "run": _run,
    "idle": _idle,
    "selftest": _selftest,
    "watch": _watch,
    "boamps": _boamps,
    "attempts": _attempts,
}

if __name__ == "__main__":
    sys.exit(main())
