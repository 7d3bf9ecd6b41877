"""The page is one file, offline, answers first, escapes what it shows, and opens in a browser."""

import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from distill_energy.answer.aggregate import answer, main
from distill_energy.ledger.rows import Problem
from distill_energy.report import page
from distill_energy.report.figures import pareto, sweep

CONFIG = {"accounting": {"bootstrap": 200, "inference_reference": "teacher"}}


@pytest.fixture(scope="module")
def html(demo_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    out = {"ledger": folder / "ledger.parquet", "summary": folder / "summary.parquet", "csv": folder / "s.csv"}
    out["places"] = folder / "where_it_went.parquet"
    main(demo_root, out, None, CONFIG, log=lambda _: None)
    summary = answer([demo_root], config=CONFIG)[1]
    pareto.draw(summary, folder / "pareto.pdf", folder / "pareto.png")
    sweep.draw(summary, folder / "sweep.pdf", folder / "sweep.png")  # nothing was swept
    figures = {"pareto": folder / "pareto.svg", "sweep": folder / "sweep.svg", "power": folder / "absent.svg"}
    page.write_page(
        out["ledger"], out["summary"], figures, folder / "report.html", config="students: [a]", code_digest="x"
    )
    return folder / "report.html"


def test_the_rule_calls_main_with_snakemakes_own_objects(html, tmp_path):
    from types import SimpleNamespace

    folder = html.parent
    inputs = SimpleNamespace(
        ledger=folder / "ledger.parquet",
        summary=folder / "summary.parquet",
        figures=[folder / "pareto.svg", folder / "sweep.svg"],
    )
    lines = []
    page.main(inputs, tmp_path / "r.html", SimpleNamespace(config={"students": ["a"]}, code_digest="x"), lines.append)
    assert "students:" in (tmp_path / "r.html").read_text()
    digest = re.compile("SHA-256 [0-9a-f]{12}")
    assert digest.sub("", (tmp_path / "r.html").read_text()) == digest.sub(
        "", html.read_text().replace("students: [a]", "students:\n- a\n")
    )
    assert "2 figures" in lines[0]


def test_nothing_is_loaded_from_outside(html):
    text = html.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", text)
    assert "url(" not in text
    assert "<link" not in text
    assert not re.search(r"<script(?! type=\"application/json\")", text)


def test_the_answer_comes_before_everything_else(html):
    text = html.read_text()
    body = text.index("<main>")
    marks = ['<p class="verdict">', '<dl class="numbers">', "<nav", "KD for the 12-layer student pays back after"]
    places = [text.index(mark, body) for mark in [*marks, "<figure", "<table"]]
    assert places == sorted(places)
    assert text.count("<dt>") == 4
    assert text.count("data:image/svg+xml;base64,") == 1


def test_each_group_has_one_line_and_all_energies_one_unit(html, demo_root):
    summary = answer([demo_root], config=CONFIG)[1]
    text = html.read_text()
    lines = re.findall(r'<div class="answer"><b>(.*?)</b><span.*?</span><span>(.*?)</span></div>', text)
    assert len(lines) == len(summary)
    assert all(len(line) < 140 for _, line in lines)
    said = re.sub(r"<script.*", "", text[text.index("<main>") :], flags=re.DOTALL)
    assert set(re.findall(r"\d[\d.\u202f]* (k?Wh|mWh|J)\b", said)) == {"Wh"}


def test_columns_of_numbers_hold_numbers_and_agree_with_the_sentences(demo_root):
    _, summary, _ = answer([demo_root], config=CONFIG)
    row = next(r for r in summary if r["pipeline"] == "kd")
    row |= {"n_star": 6.59, "n_star_status": "undecided", "n_star_low": 3.2, "n_star_high": None}
    row |= {"n_star_equal_quality": 4.2, "n_star_equal_quality_status": "finite"}
    text = page.render([], summary, [])
    assert "6.59" not in text.replace(text[text.index("summary-data") :], "")
    table = text[text.index("Break-even against the baseline") :]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", table[table.index(f">{row['label']}<") :].split("</tr>")[0], re.DOTALL)
    assert cells[1] == "–" and cells[2].startswith("undecided")
    assert cells[5] == "5" and "at equal quality it pays back after 5 reuses" in text


class Reader(HTMLParser):
    """Tags with their attributes, and every text by the tag around it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids.add(dict(attrs).get("id"))


def test_contents_scopes_and_alternative_texts(html):
    read = Reader(html.read_text())
    links = [a["href"][1:] for tag, a in read.tags if tag == "a"]
    assert len(links) >= 7 and set(links) <= read.ids
    heads = [a for tag, a in read.tags if tag == "th"]
    assert heads and all(a["scope"] in ("col", "row") for a in heads)
    (image,) = (a for tag, a in read.tags if tag == "img")
    assert re.search(r"With the teacher counted whole, .* on the front; \d others are dominated", image["alt"])


def test_a_figure_with_nothing_to_draw_is_a_line_and_no_card(html):
    text = html.read_text()
    assert 'id="sweep"' not in text
    assert "Sweeps: No pipeline was swept" in text


def test_where_it_comes_from_and_how_it_is_cited(html, demo_root):
    rows, _, _ = answer([demo_root], config=CONFIG)
    rows[0] |= {"git_commit": "0123456789abcdef", "started_utc": "2026-01-02T03:04:05+00:00"}
    found = dict(page.provenance(rows, "students: [a]"))
    assert found["Measured (UTC)"].startswith("2026-01-02 03:04 to ")
    assert "0123456789ab" in found["Commit"]
    assert hashlib.sha256(b"students: [a]").hexdigest()[:12] in found["Configuration"]
    assert "Lambert and Luccioni (2026)" in html.read_text()
    assert "students: [a]" in html.read_text()


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


def browse(page_path, tmp_path, width=1280):
    """The page's document after a real browser has laid it out."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"]
    flags += ["--hide-scrollbars", f"--window-size={width},1000"]
    command = [browser, *flags, page_path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_it_opens_in_a_real_browser(html, tmp_path):
    seen = browse(html, tmp_path)
    assert "KD for the 12-layer student pays back after" in seen
    assert seen.count("<tr>") == html.read_text().count("<tr>")


MEASURE = """<script>
const wide = [...document.querySelectorAll(".scroll, .dag, pre")].filter(e => e.scrollWidth > e.clientWidth + 1).length;
document.body.dataset.wide = wide;
document.body.dataset.over = document.documentElement.scrollWidth - document.documentElement.clientWidth;
</script></body>"""


@pytest.mark.parametrize(("width", "printed"), [(1280, False), (400, False), (690, True)])
def test_no_page_is_wider_than_its_window_and_no_table_is_cut_on_paper(html, tmp_path, width, printed):
    """On paper (A4 less its margins is 690 px wide) nothing may need a scroll bar either."""
    text = html.read_text().replace("</body>", MEASURE)
    if printed:
        assert "@media print" in text
        text = text.replace("@media print", "@media all").replace("overflow: visible", "overflow: auto")
        text = text.replace("<details", "<details open")
    (tmp_path / "page.html").write_text(text)
    seen = browse(tmp_path / "page.html", tmp_path, width)
    assert 'data-over="0"' in seen
    if printed or width == 1280:
        assert 'data-wide="0"' in seen


def test_it_follows_the_readers_dark_mode(html):
    text = html.read_text()
    dark = text[text.index("prefers-color-scheme: dark") :].split("\n@")[0]
    for name in re.findall(r"(--\w+):", text[text.index(":root") :].split("}")[0]):
        if name not in ("--warn",):
            assert f"{name}:" in dark
    colours = re.findall(r"#[0-9a-f]{3,6}", text[text.index('class="card dag"') :].split("</svg>")[0])
    assert "fill:var(--paper" in text and colours


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


def test_an_artifact_made_twice_is_in_every_total(demo_root, tmp_path):
    """Page, stages, places: one sum, the second making in it and wasted."""
    import factory

    from distill_energy.answer.aggregate import judge
    from distill_energy.report.sentences import energy

    store = tmp_path / "store"
    key = ("teacher_logits", f"{factory.TEACHER}-{factory.DATASET}", factory.short("teacher_logits"))
    factory.stage(store, key, 3_600_000.0, start_utc="2026-11-25T00:00:00Z")
    (once, _), (twice, _) = judge([demo_root], config=CONFIG), judge([demo_root, store], config=CONFIG)
    spent, before = (sum(p["joules"] for p in found.places) for found in (twice, once))
    assert spent == pytest.approx(before + 3.6e6)
    shown = {name: value for name, value, _ in page.numbers(twice.rows, [])}
    assert shown["Energy spent in all"] == energy(spent / 3.6e6)
    wasted = sum(p["joules"] for p in twice.places if p["place"] == "wasted")
    assert f"{page.percent(wasted / spent)} was wasted" in page.shares(twice.rows)
    stage = {row["stage"]: row for row in page.stage_table(twice.rows, energy)}["teacher_logits"]
    assert stage["count"] == 2
    assert stage["energy"] == energy((1300.0 + 3.6e6) / 3.6e6)


def test_rows_that_a_data_set_left_out_are_said(demo_root, tmp_path):
    """By reason and number, from the data's sidecar to the page."""
    import json

    root = tmp_path / "results"
    shutil.copytree(demo_root, root)
    path = next((root / "preprocess").glob("data-*/*/energy.json"))
    sidecar = json.loads(path.read_text())
    sidecar["results"] |= {"n_dropped": 2, "refused: response is null": 1234}
    path.write_text(json.dumps(sidecar))
    rows = answer([root])[0]
    said = page.warnings(rows, None)
    name = sidecar["name"]
    words = "refused: response is null (1,234); without a label within max_length (2)"
    assert f"Rows that are not in {name}: {words}." in said, said
