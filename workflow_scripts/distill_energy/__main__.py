"""Command line: ``distill-energy summary results/`` (or ``python -m distill_energy``) and its sisters."""

from __future__ import annotations

import importlib.metadata
import sys

from .errors import UserError

#: Commands with a parser of their own: name → module whose ``main(arguments)`` runs it. The others are in
#: ``report/command.py``.
APART = {"energy": "energy.__main__", "rates": "forecast.rates", "crate": "report.crate"}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a :class:`UserError` becomes one line on stderr and exit status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"distill-energy {importlib.metadata.version('distill-energy')}")
        return 0
    if arguments and arguments[0] in APART:
        return importlib.import_module(f".{APART[arguments[0]]}", __package__).main(arguments[1:])

    from .report.command import build_parser

    options = build_parser(APART).parse_args(arguments)
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
