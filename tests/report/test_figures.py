"""Figures are drawn from every ledger, say what they leave out, and are the same for the same data."""

import pytest

from distill_energy.accounting.aggregate import answer
from distill_energy.accounting.paper import replay
from distill_energy.report.figures import amortization, pareto, stage_breakdown

FIGURES = (pareto, stage_breakdown, amortization)


@pytest.fixture(scope="module")
def summary(demo_root):
    return answer([demo_root], config={"accounting": {"bootstrap": 200}})[1]


@pytest.mark.parametrize("module", FIGURES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_pdf_and_png_are_whole_and_reproducible(module, summary, tmp_path):
    for turn in ("a", "b"):
        module.draw(summary, tmp_path / f"{turn}.pdf", tmp_path / f"{turn}.png")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "a.pdf").read_bytes().rstrip().endswith(b"%%EOF")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("module", FIGURES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_nothing_to_draw_is_said_not_raised(module, tmp_path):
    module.draw([], tmp_path / "f.pdf", tmp_path / "f.png")
    assert (tmp_path / "f.pdf").stat().st_size > 1000


def test_segments_add_up_to_the_stage_energies(summary):
    for row in summary:
        parts = stage_breakdown.segments(row)
        assert sum(v for _, _, v in parts) == pytest.approx(row["e_oneoff_kwh"])
        assert all(v > 0 for *_, v in parts)
        wasted = sum(v for _, what, v in parts if what == "wasted")
        assert wasted == pytest.approx(row["e_oneoff_wasted_kwh"])


def texts(figure):
    import matplotlib.text

    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


def test_pareto_labels_do_not_overlap_and_missing_points_are_named(summary, tmp_path, monkeypatch):
    from distill_energy.report import style

    kept = []
    monkeypatch.setattr(style, "save", lambda figure, pdf, png: kept.append(figure))
    pareto.draw(summary, tmp_path / "f.pdf", tmp_path / "f.png")
    figure = kept[0]
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    main = figure.axes[0]
    boxes = [t.get_window_extent(renderer) for t in main.texts]
    assert len(boxes) == len(summary)
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert not one.overlaps(other)


def test_points_without_quality_are_named_on_the_figure(repo, tmp_path, monkeypatch):
    from distill_energy.report import style

    kept = []
    monkeypatch.setattr(style, "save", lambda figure, pdf, png: kept.append(figure))
    pareto.draw(replay(repo / "configs" / "paper_table.yaml", tmp_path)[1], "x", "y")
    assert any("Not shown: Synthetic 1B" in t.replace("\n", " ") for t in texts(kept[0]))


def test_amortisation_curves_cross_the_baseline_at_n_star(summary):
    by_group = {r["group"]: r for r in summary}
    for row in summary:
        if row["n_star"] is not None:
            at = row["e_teacher_kwh"] / row["n_star"] + row["e_student_kwh"]
            assert at == pytest.approx(by_group[row["baseline_group"]]["e_student_kwh"])
