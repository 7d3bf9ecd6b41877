"""The page is one file, offline, answers first, escapes what it shows, and opens in a browser."""

import re
import shutil
import subprocess

import pytest

from distill_energy.answer.aggregate import answer, main
from distill_energy.ledger.rows import Problem
from distill_energy.report import page
from distill_energy.report.figures import pareto

CONFIG = {"accounting": {"bootstrap": 200, "inference_reference": "teacher"}}


@pytest.fixture(scope="module")
def html(demo_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    out = {"ledger": folder / "ledger.parquet", "summary": folder / "summary.parquet", "csv": folder / "s.csv"}
    main(demo_root, out, None, CONFIG, log=lambda _: None)
    summary = answer([demo_root], config=CONFIG)[1]
    pareto.draw(summary, folder / "pareto.pdf", folder / "pareto.png")
    figures = {"pareto": folder / "pareto.png", "sweep": folder / "absent.png"}
    page.write_page(
        out["ledger"], out["summary"], figures, folder / "report.html", config="students: [a]", code_digest="x"
    )
    return folder / "report.html"


def test_the_rule_calls_main_with_snakemakes_own_objects(html, tmp_path):
    from types import SimpleNamespace

    folder = html.parent
    inputs = SimpleNamespace(
        ledger=folder / "ledger.parquet", summary=folder / "summary.parquet", figures=[folder / "pareto.png"]
    )
    lines = []
    page.main(inputs, tmp_path / "r.html", SimpleNamespace(config={"students": ["a"]}, code_digest="x"), lines.append)
    assert "students:" in (tmp_path / "r.html").read_text()
    assert (tmp_path / "r.html").read_text() == html.read_text().replace("students: [a]", "students:\n- a\n")
    assert "1 figures" in lines[0]


def test_nothing_is_loaded_from_outside(html):
    text = html.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", text)
    assert "url(" not in text
    assert "<link" not in text
    assert not re.search(r"<script(?! type=\"application/json\")", text)


def test_the_answer_comes_before_everything_else(html):
    text = html.read_text()
    first = text.index("KD for the 12-layer student pays back after")
    assert first < text.index("<figure") < text.index("<table")
    assert text.count("data:image/png;base64,") == 1


def test_estimates_are_announced(html):
    assert "45 of 45 executions have estimated, not measured, joules." in html.read_text()


def test_what_records_say_is_escaped(demo_root):
    rows, summary, _ = answer([demo_root], config=CONFIG)
    evil = "<script>alert(1)</script>"
    summary[0]["label"] = rows[0]["host"] = evil
    text = page.render(rows, summary, [Problem(evil, "rejected", evil)], config=evil)
    assert evil not in text
    assert "&lt;script&gt;" in text


def test_a_page_without_any_run_says_so():
    assert "No student has been trained yet" in page.render([], [], [])


def test_other_code_and_dirty_trees_are_warned_of(demo_root):
    rows, _, _ = answer([demo_root], config=CONFIG)
    rows[0] |= {"code_digest": "old", "git_dirty": True, "flags": ["gap", "shared_device"]}
    texts = page.warnings(rows, "new")
    assert any("other code than today's" in t for t in texts)
    assert any("uncommitted" in t for t in texts)
    assert any("gaps" in t for t in texts)
    assert any("shared" in t for t in texts)


def test_it_opens_in_a_real_browser(html, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([browser, *flags, html.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "KD for the 12-layer student pays back after" in done.stdout
    assert done.stdout.count("<tr>") == html.read_text().count("<tr>")


def test_q_by_benchmark_flags_what_is_below_the_baseline():
    def row(group, scores, base="a"):
        return {
            "group": group,
            "label": group,
            "is_baseline": group == base,
            "baseline_group": base,
            "q_by_benchmark": scores,
        }

    rows = [row("a", '{"x": 0.9, "y": 0.5}'), row("b", '{"x": 0.8, "y": 0.6}'), row("c", '{"x": 0.9}')]
    names, lines = page.by_benchmark(rows)
    assert names == ["x", "y"]
    assert dict(lines) == {
        "a": [(0.9, False), (0.5, False)],
        "b": [(0.8, True), (0.6, False)],
        "c": [(0.9, False), (None, False)],  # unknown is not below
    }


def test_q_by_benchmark_stands_in_the_page(html):
    assert "<h3>Q by benchmark</h3>" in html.read_text()
