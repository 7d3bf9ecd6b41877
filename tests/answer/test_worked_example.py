"""The worked example of docs/accounting.md, from sidecars."""

import re

import pytest

from distill_energy.answer.aggregate import judge
from distill_energy.answer.summary import summary_of
from distill_energy.ledger.build import make_sidecar, write_scores, write_sidecar
from distill_energy.store.sidecar import Component, Hardware

CPU = Hardware(host="h", cpu="a CPU", cores=2)


def put(root, key, joules, consumes=(), **labels):
    part = Component(component="cpu", source="measured", method="rapl", gross_j=float(joules), error_j=0.0)
    return write_sidecar(root, make_sidecar(key, [part], labels=labels, consumes=consumes, hardware=CPU))


@pytest.fixture
def example(tmp_path):
    data, cache = ("preprocess", "data-d", "d"), ("teacher_logits", "t-d", "c")
    put(tmp_path, data, 12)
    put(tmp_path, cache, 30, [data], teacher="t", dataset="d")
    for pipeline, setting, joules, score in (
        ("sft", {}, 100, 0.5),
        ("kd", {"alpha": 0.3}, 90, 0.6),
        ("kd", {"alpha": 0.9}, 95, 0.4),
    ):
        for seed in (0, 1):
            name = f"{pipeline}-{setting.get('alpha', '')}-{seed}"
            labels = {
                "teacher": "t", "dataset": "d", "pipeline": pipeline, "student": "s", "hyperparameters": setting,
                "seed": seed, "group": f"{pipeline}{setting}", "role": "student",
            }  # fmt: skip
            key = ("student_training", name, name)
            put(tmp_path, key, joules, [data, *([cache] if pipeline == "kd" else [])], **labels)
            folder = put(tmp_path, ("evaluation", name, name), 5, [key], suite="q", run=name, **labels)
            write_scores(folder, [{"benchmark": "b", "score": score, "stderr": 0.01, "chance": 0.0, "n": 100}])
    folder = put(tmp_path, ("evaluation", "teacher", "e"), 0, role="teacher", teacher="t", suite="q")
    write_scores(folder, [{"benchmark": "b", "score": 0.9, "stderr": 0.01, "chance": 0.0, "n": 100}])
    found, problems = judge([tmp_path])
    assert problems == []
    return found, summary_of(found)


def test_the_page_says_what_the_code_computes(example, repo):
    found, summary = example
    kd = next(r for r in summary if r["pipeline"] == "kd" and r["is_kept"])
    sft = next(r for r in summary if r["pipeline"] == "sft")
    assert kd["hyperparameters"] == '{"alpha":0.3}'

    def joules(row, name):
        return round(row[f"{name}_kwh"] * 3.6e6, 6)

    computed = {
        "spent": round(sum(p["joules"] for p in found.places), 6),
        "one-off KD": joules(kd, "e_oneoff"),
        "amortised KD": joules(kd, "e_amortised"),
        "marginal KD": joules(kd, "e_marginal"),
        "campaign KD": joules(kd, "e_campaign"),
        "amortised and campaign SFT": joules(sft, "e_amortised"),
        "N\\*": kd["n_star"],
        "balance": joules(kd, "balance"),
    }
    assert joules(sft, "e_campaign") == joules(sft, "e_amortised")
    assert (kd["n_reuse"], kd["n_kept_runs"]) == (4, 2)
    text = (repo / "docs" / "accounting.md").read_text(encoding="utf-8")
    section = text[text.index("## A worked example") : text.index("## N*, the balance")]
    for name, value in computed.items():
        (line,) = [x for x in section.splitlines() if x.startswith(f"| {name}")]
        printed = float(re.sub("−", "-", line.rstrip(" |").rsplit("|", 1)[1].strip()))
        assert printed == pytest.approx(value), name
