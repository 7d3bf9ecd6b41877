"""N* in FLOPs beside N*, with the share of the peak that was reached."""

import factory
import pytest

from distill_energy.answer.aggregate import answer
from distill_energy.report.sentences import detail


def study(root, sft, kd, cache=30.0):
    """One student by SFT and KD, two seeds; joules 100 and 90 a run, 300 of the cache. Arguments: FLOPs."""
    data, teacher = ("preprocess", "data-d", "d0"), ("teacher_logits", "t-d", "c0")
    factory.stage(root, data, 10.0, {"dataset": "d"})
    factory.stage(root, teacher, 300.0, {"teacher": "t", "dataset": "d"}, [data], results={"flops": cache})
    for pipeline, joules, flops, reached in (("sft", 100.0, sft, 0.2), ("kd", 90.0, kd, 0.3)):
        for seed in (0, 1):
            group = factory.short(pipeline)
            labels = {"teacher": "t", "dataset": "d", "pipeline": pipeline, "student": "s", "hyperparameters": {}}
            labels |= {"seed": seed, "group": group, "baseline_group": factory.short("sft"), "role": "student"}
            labels |= {"run": f"{pipeline}{seed}"}
            key = ("student_training", f"d-{pipeline}-s-s{seed}", f"{pipeline}{seed}")
            consumes = [data, *([teacher] if pipeline == "kd" else [])]
            results = {"flops": flops, "utilisation": reached}
            factory.stage(root, key, joules + seed, labels, consumes, seed=seed, results=results)
    summary = answer([root])[1]
    return next(r for r in summary if r["pipeline"] == "kd"), summary


def test_the_same_ratio_of_operations(tmp_path):
    row, rows = study(tmp_path, sft=100.0, kd=94.0)
    assert row["n_star"] == pytest.approx(30)
    assert row["n_star_flops"] == pytest.approx(30 / 6)
    assert row["n_star_flops_status"] == "finite"
    assert row["utilisation"] == pytest.approx(0.3)
    told = detail(row, rows)
    assert "In floating-point operations it pays back after 5 reuses" in told
    assert "(its training reached 30\u202f% of the peak, SFT 20\u202f%)" in told


def test_the_same_tokens_never_pay_in_operations(tmp_path):
    row, rows = study(tmp_path, sft=100.0, kd=100.0)
    assert (row["n_star_flops"], row["n_star_flops_status"]) == (None, "never")
    assert "what it saves in joules is implementation" in detail(row, rows)


def test_operations_that_were_not_counted_are_unknown(tmp_path):
    row, _ = study(tmp_path, sft=None, kd=90.0)
    assert (row["n_star_flops"], row["n_star_flops_status"]) == (None, "unknown")
    assert row["n_star_flops_reason"] == "the operations of a stage were not counted"
