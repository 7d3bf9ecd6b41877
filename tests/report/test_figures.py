"""Figures are drawn from every ledger, say what they leave out, and are the same for the same data."""

import itertools

import pytest

from distill_energy.answer.aggregate import answer
from distill_energy.published.replay import replay
from distill_energy.report import style
from distill_energy.report.figures import amortization, comparison, pareto, stage_breakdown

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
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert style.drawn((tmp_path / "a.svg").read_text()) == (True, "")


@pytest.mark.parametrize("module", FIGURES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_nothing_to_draw_is_said_not_raised(module, tmp_path):
    module.draw([], tmp_path / "f.pdf", tmp_path / "f.png")
    assert (tmp_path / "f.pdf").stat().st_size > 1000
    drawn, why = style.drawn((tmp_path / "f.svg").read_text())
    assert not drawn and why[0].isupper()


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


def drawn_by(monkeypatch, module, *args):
    """The figure that a module saves, laid out."""
    kept = []
    monkeypatch.setattr(style, "save", lambda figure, pdf, png, description=None: kept.append(figure))
    module.draw(*args, "x.pdf", "x.png")
    kept[0].canvas.draw()
    return kept[0]


def test_pareto_labels_cover_no_label_no_marker_and_no_bar_in_any_panel(summary, monkeypatch):
    figure = drawn_by(monkeypatch, pareto, summary)
    renderer = figure.canvas.get_renderer()
    assert len(figure.axes[0].texts) == len(summary)
    students = {row["student"] for row in summary}
    for axes in figure.axes:
        boxes = {t.get_text() + str(i): t.get_window_extent(renderer) for i, t in enumerate(axes.texts)}
        if axes is not figure.axes[0]:  # one label a student
            assert sorted(t.get_text() for t in axes.texts) == sorted(students)
        for one, other in itertools.combinations(boxes.values(), 2):
            assert not one.overlaps(other)
        points = [p for line in axes.lines if line.get_marker() in "os^" for p in line.get_xydata()]
        assert len(points) >= len(summary)
        bars = [path for c in axes.collections for path in c.get_paths()]
        for text, box in boxes.items():
            near = [p for p in axes.transData.transform(points) if box.padded(2).contains(*p)]
            assert not near, (axes.get_title(loc="left"), text)
            crossed = [b for b in bars if b.transformed(axes.transData).intersects_bbox(box, filled=False)]
            assert not crossed, (axes.get_title(loc="left"), text)


def test_an_energy_without_quality_stands_at_the_lower_edge(repo, tmp_path, monkeypatch):
    rows = replay(repo / "configs" / "paper_table.yaml", tmp_path)[1]
    figure = drawn_by(monkeypatch, pareto, rows)
    assert any("Q unknown, at the lower edge: Synthetic 1B" in t.replace("\n", " ") for t in texts(figure))
    unknown = next(r for r in rows if r["q"] is None)
    main = figure.axes[0]
    x, y = next(line.get_xydata()[0] for line in main.lines if line.get_xdata()[0] == unknown["e_oneoff_kwh"])
    assert main.get_ylim()[0] < y < min(r["q"] for r in rows if r["q"] is not None)
    assert all(r["q"] is None for r in rows if r["e_oneoff_kwh"] == x)


def test_energies_are_drawn_even_if_no_quality_is_known(summary, tmp_path):
    rows = [{**row, "q": None, "q_low": None, "q_high": None, "q_reason": "mmlu failed"} for row in summary]
    pareto.draw(rows, tmp_path / "f.pdf", tmp_path / "f.png")
    assert style.drawn((tmp_path / "f.svg").read_text())[0]


def test_amortisation_marks_the_real_n_and_the_balance_and_its_bars_leave_the_verdicts_free(summary, monkeypatch):
    rows = [{**row} for row in summary]
    for row in rows:  # an interval that nothing is told from
        if row["saving_high_kwh"] is not None:
            row |= {"saving_low_kwh": -9 * row["e_oneoff_kwh"], "saving_high_kwh": 9 * row["e_oneoff_kwh"]}
    figure = drawn_by(monkeypatch, amortization, rows)
    renderer = figure.canvas.get_renderer()
    panels = [axes for axes in figure.axes if axes.lines]
    assert len(panels) == 3
    for axes in panels:
        verdicts = [t for t in axes.texts if t.get_text()]
        assert len(verdicts) == 2 and all("Wh" in t.get_text() for t in verdicts)
        lowest = min(t.get_window_extent(renderer).y0 for t in verdicts)
        for line in axes.lines:
            if len(set(line.get_xdata())) == 1:  # a bar, or a marker at the real N
                assert axes.transData.transform(line.get_xydata())[:, 1].max() < lowest
        frame = axes.get_window_extent(renderer)
        assert all(frame.x0 <= t.get_window_extent(renderer).x0 for t in verdicts)


def test_amortisation_shows_n_star_in_operations(summary, monkeypatch):
    """A diamond on the baseline's line where it is a number that fits, else words below."""
    rows = [{**row, "n_star_flops_status": "never", "n_star_flops": None} for row in summary]
    kd = next(r for r in rows if r["pipeline"] == "kd")
    kd |= {"n_star_flops_status": "finite", "n_star_flops": 4.5}
    figure = drawn_by(monkeypatch, amortization, rows)
    diamonds = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "D"]
    assert [line.get_xdata()[0] for line in diamonds] == [4.5]
    said = " ".join(texts(figure)).replace("\n", " ")
    assert "N* in FLOPs" in said and "KD never for 2 of 3 students" in said.replace("- ", "-")


def test_the_error_bars_of_totals_hide_no_segment(summary, monkeypatch):
    (axes,) = drawn_by(monkeypatch, stage_breakdown, summary).axes
    bars = [patch for patch in axes.patches if patch.get_height() < 1]
    for line in axes.lines:
        for y in line.get_ydata():
            assert not any(b.get_y() <= y <= b.get_y() + b.get_height() for b in bars)


def test_the_published_values_stand_beside_ours(repo, tmp_path, monkeypatch):
    rows = replay(repo / "configs" / "paper_table.yaml", tmp_path)[2]
    said = texts(drawn_by(monkeypatch, comparison, rows))
    assert any(text.startswith("10 of 11 published values agree") for text in said)
    assert "agrees*" in said and any("not independent" in text for text in said)
    assert {"16.90", "about 10", "10.00", "4 to 6 (larger students)", "3.55"} <= set(said)
    wrong = texts(drawn_by(monkeypatch, comparison, [{**rows[0], "agrees": False}]))
    assert "differs" in wrong and any(text.startswith("0 of 1 published values agree") for text in wrong)


def test_amortisation_curves_cross_the_baseline_at_n_star(summary):
    by_group = {r["group"]: r for r in summary}
    for row in summary:
        if row["n_star"] is not None:
            at = row["e_teacher_kwh"] / row["n_star"] + row["e_student_kwh"]
            assert at == pytest.approx(by_group[row["baseline_group"]]["e_student_kwh"])


def test_each_data_set_gets_its_own_front(summary, tmp_path, monkeypatch):
    import copy

    from distill_energy.answer.summary import finish

    rows = copy.deepcopy(summary)
    for row in copy.deepcopy(summary):
        rows.append(
            {**row, "dataset": "other", "group": row["group"] + "o", "baseline_group": f"{row['baseline_group']}o"}
        )
    finish(rows)
    kept = []
    monkeypatch.setattr(style, "save", lambda figure, pdf, png, description=None: kept.append(figure))
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
    assert watts == [30.0, 30.0, 30.0, 30.0, 50.0]  # none over the wrap, none between the attempts
    assert seconds == [0.0, 1.0, 2.0, 4.0, 5.0]
    assert thinned([0, 1, 2, 3], [1, 3, 5, 7], 2) == ([0.5, 2.5], [2.0, 6.0])


def test_power_has_no_dip_where_readings_follow_at_once(tmp_path):
    """A phase's edge is read with the last renewed estimate, or with the next one under the old time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from distill_energy.report.figures.power import _idle_note, read_trace

    times = [0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 4.0, 4.05]
    table = {
        "attempt": ["a"] * 8, "mono_s": times, "component": ["cpu"] * 8, "device": [None] * 8,
        "watts": pa.array([None] * 8, pa.float64()), "counter_j": [0.0, 4.0, 4.0, 8.0, 12.0, 12.0, 16.0, 16.0],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "power.parquet")
    ((seconds, watts),) = read_trace(tmp_path / "power.parquet").values()
    assert (seconds, watts) == ([0.0, 1.0, 2.0, 3.0, 4.0], [4.0] * 5)
    estimated, measured = ({"idle_j": None, "source": s} for s in ("estimated", "measured"))
    assert "leaves out" in _idle_note([estimated])
    assert "unknown" in _idle_note([estimated, measured])
    assert "Dashed" in _idle_note([estimated, {**measured, "idle_j": 3.0}])


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
