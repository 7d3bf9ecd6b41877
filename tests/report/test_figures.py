"""Figures are drawn from every ledger, say what they leave out, and are the same for the same data."""

import pytest

from distill_energy.answer.aggregate import answer
from distill_energy.published.replay import replay
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


def test_each_data_set_gets_its_own_front(summary, tmp_path, monkeypatch):
    import copy

    from distill_energy.answer.summary import finish
    from distill_energy.report import style

    rows = copy.deepcopy(summary)
    for row in copy.deepcopy(summary):
        rows.append(
            {**row, "dataset": "other", "group": row["group"] + "o", "baseline_group": f"{row['baseline_group']}o"}
        )
    finish(rows)
    kept = []
    monkeypatch.setattr(style, "save", lambda figure, pdf, png: kept.append(figure))
    pareto.draw(rows, "x", "y")
    assert len(kept[0].axes) == 8
    assert {a.get_title(loc="left") for a in kept[0].axes} >= {"instructions", "other"}


def test_every_figure_renders_from_the_written_files(demo_root, tmp_path):
    from distill_energy.answer.aggregate import main
    from distill_energy.report.figures import NAMES, render

    out = {"ledger": tmp_path / "l.parquet", "summary": tmp_path / "s.parquet", "csv": tmp_path / "s.csv"}
    out["places"] = tmp_path / "where_it_went.parquet"
    main(demo_root, out, None, {"accounting": {"bootstrap": 200}}, log=lambda _: None)
    for name in NAMES:
        render(name, out["ledger"], out["summary"], tmp_path / f"{name}.pdf", tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_where_it_went_draws_every_joule(demo_root, tmp_path):
    from distill_energy.answer.aggregate import judge
    from distill_energy.report.figures.where_it_went import amounts, draw

    found, _ = judge([demo_root])
    drawn = sum(v for phases in amounts(found.places).values() for v in phases.values())
    assert drawn == pytest.approx(sum(p["joules"] for p in found.places if p["joules"] is not None))
    draw([], tmp_path / "f.pdf", tmp_path / "f.png")
    assert (tmp_path / "f.pdf").stat().st_size > 1000


def test_power_from_a_counter_leaves_a_hole_at_a_wrap(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from distill_energy.report.figures.power import read_trace, thinned

    table = pa.table(
        {
            "attempt": ["a"] * 5 + ["b"] * 2,
            "mono_s": [0.0, 1.0, 2.0, 3.0, 4.0, 100.0, 101.0],
            "component": ["cpu"] * 7,
            "device": [None] * 7,
            "watts": pa.array([None] * 7, pa.float64()),
            "counter_j": [10.0, 40.0, 70.0, 5.0, 35.0, 0.0, 50.0],
        }
    )
    pq.write_table(table, tmp_path / "power.parquet")
    ((seconds, watts),) = read_trace(tmp_path / "power.parquet").values()
    assert watts == [30.0, 30.0, 30.0, 50.0]  # none over the wrap, none between the attempts
    assert seconds == [1.0, 2.0, 4.0, 5.0]
    assert thinned([0, 1, 2, 3], [1, 3, 5, 7], 2) == ([0.5, 2.5], [2.0, 6.0])


def test_sweeps_of_two_keys_span_a_map_and_of_none_are_said(tmp_path):
    import factory

    from distill_energy.report.figures.sweep import find_sweeps
    from distill_energy.report.select import headline

    grid = [{"alpha": a, "temperature": t} for a in (0.3, 0.7) for t in (1.0, 4.0)]
    root = factory.demo(tmp_path, students=("6-layer",), pipelines=("sft", "kd"), sweep={"kd": grid})
    rows = answer([root], config={"accounting": {"bootstrap": 100}})[1]
    (sweep,) = find_sweeps(rows)
    assert (sweep["y"], sweep["x"]) == ("alpha", "temperature")
    assert (sweep["rows"], sweep["columns"]) == ([0.3, 0.7], [1.0, 4.0])
    assert len(set(sweep["cells"])) == 4
    best = headline(rows)
    assert len(best) == 2
    assert max(r["q"] for r in rows if r["pipeline"] == "kd") in [r["q"] for r in best]
