"""Command line: ``python -m distill_energy summary results/`` and its sisters."""

from __future__ import annotations

import sys

from .errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a :class:`UserError` becomes one line on stderr and exit status 1."""
    from .report.command import build_parser

    options = build_parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
