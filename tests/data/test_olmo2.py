"""The full-scale configuration plans the paper's experiment."""

from distill_energy.config.load import load_config
from distill_energy.plan import build_plan


def test_olmo2_plans_the_papers_experiment(repo):
    config = load_config(repo / "configs" / "olmo2.yaml")
    plan = build_plan(config)
    grid = len(config.datasets) * len(config.students) * len(config.seeds)
    assert grid == 3 * 3 * 3
    # SFT and synthetic once each, KD at three α and three T
    assert len(plan.of("student_training")) == grid * (1 + 1 + 9)
    # the teacher runs once a data set and artifact, whatever the sweep
    assert len(plan.of("teacher_logits")) == len(plan.of("teacher_generation")) == 3
    assert {"gsm8k", "mmlu", "ifeval", "alpaca-eval", "mt-bench-101"} < set(config.evaluation.benchmarks)
    assert all(dataset.max_length == 1024 for dataset in config.datasets.values())
