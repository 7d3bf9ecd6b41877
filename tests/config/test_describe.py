"""The configuration page says what the schema says."""

from distill_energy.config.describe import page


def test_page_is_in_step_with_the_schema(repo):
    assert (repo / "docs" / "configuration.md").read_text() == page(), (
        "run: python -m distill_energy.config.describe > docs/configuration.md"
    )
