"""Files that the pages for developers name are there."""

import re

import pytest


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "docs/accounting.md"])
def test_every_file_that_is_named_exists(repo, page):
    text = (repo / page).read_text(encoding="utf-8")
    named = {n for n in re.findall(r"`([\w./]+\.(?:py|smk|md))`", text) if "<" not in n}
    assert named
    roots = (repo, repo / "workflow_scripts", repo / "workflow_scripts" / "distill_energy")
    assert not [name for name in sorted(named) if not any((root / name).exists() for root in roots)]
