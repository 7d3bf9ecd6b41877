"""``distill-energy verify results/``: are the records whole, the files what they were, and every joule in one place?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..answer.aggregate import judge, reopened
from ..errors import UserError
from ..ledger.rows import counts
from ..store.artifact import damage
from ..store.sidecar import SIDECAR_NAME, read

#: Kinds of problems that leave the answer whole: they are named, and their joules counted or left to others.
HARMLESS = ("orphan", "running", "duplicate", "unknown_energy")


@dataclass(frozen=True)
class Finding:
    """Something that is not as its record says. ``remake``: the artifact's folder, if making it again mends it."""

    message: str
    remake: str | None = None


def verify(roots: Sequence[Path]) -> tuple[list[Finding], list[str]]:
    """(what is wrong, what was checked) of results folders: records, provenance, digests, conservation.

    Raises UserError for a folder that holds no record.
    """
    roots, given = reopened(roots)
    found, problems = judge(roots, **given)
    rows = list(found.rows)
    if not rows:
        raise UserError(f"{roots[0]}: holds no sidecar (expected <stage>/<name>/<version>/energy.json)")
    findings = [Finding(p.message, str(Path(p.path).parent)) for p in problems if p.kind not in HARMLESS]
    files = 0
    for row in rows:
        if row["status"] in ("ok", "consumes_missing", "duplicate"):
            record = read(Path(row["path"]) / SIDECAR_NAME)
            files += len(record.produces)
            if (problem := damage(row["path"], record)) is not None:
                findings.append(Finding(problem, row["path"]))
    spent = [r["total_j"] for r in rows if counts(r)]
    placed = [p["joules"] for p in found.places]
    total, there = (math.fsum(v for v in values if v is not None) for values in (spent, placed))
    if abs(total - there) > 1e-9 * max(total, 1.0):
        findings.append(Finding(f"{total:.3f} J were spent and {there:.3f} J have a place"))
    checked = [
        f"{len(rows)} executions, {files} files by their hash",
        f"{total:.1f} J spent, every one in one place" + (f"; {spent.count(None)} unknown" if None in spent else ""),
    ]
    harmless = [p for p in problems if p.kind in HARMLESS]
    if harmless:
        checked.append(f"{len(harmless)} record(s) named and counted: {', '.join(sorted({p.kind for p in harmless}))}")
    unique = {finding.message: finding for finding in findings}
    return list(unique.values()), checked
