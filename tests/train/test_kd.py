"""Distillation on a cache that the teacher's own stage makes."""

from types import SimpleNamespace

import pytest

from distill_energy.config.params import read_params
from distill_energy.errors import UserError

from .tiny import MODEL, CountingMeter, params, run

TEACHER = {**MODEL, "layers": 3, "seed": 5}


def make_cache(folder, data, model=TEACHER, **logits):
    from distill_energy.teacher.logits import main

    folder.mkdir(parents=True)
    settings = {"method": "head_tail", "head": 16, "tail": 16, "audit_examples": 1} | logits
    raw = {"model": model, "dtype": "float32", "logits": settings}
    spec, told = SimpleNamespace(params=raw, runs={}), read_params("teacher_logits", raw)
    main(
        SimpleNamespace(spec=spec, params=told, inputs=data, out=folder, work=folder, meter=CountingMeter(), log=print)
    )
    return folder


@pytest.fixture(scope="module")
def inputs(data, tmp_path_factory):
    return {**data, "teacher_logits": make_cache(tmp_path_factory.mktemp("cache") / "c", data)}


def test_kd_comes_closer_to_the_teacher(tmp_path, inputs):
    results, rows, _ = run(
        tmp_path, params("kd", pipeline={"alpha": 0.0, "temperature": 1.0}, max_steps=60, eval_every=60), inputs
    )
    assert rows[-1]["kl"] < 0.7 * rows[0]["kl"]
    assert rows[-1]["train_loss"] == pytest.approx(rows[-1]["kl"], rel=1e-4)
    assert results["pipeline"] == "kd"


def test_alpha_one_is_fine_tuning(tmp_path, inputs):
    """α = 1 leaves the cross-entropy alone: the same losses as sft, on the same batches."""
    _, kd, _ = run(tmp_path / "a", params("kd", pipeline={"alpha": 1.0, "temperature": 2.0}), inputs)
    _, sft, _ = run(tmp_path / "b", params("sft"), inputs)
    for key in ("train_loss", "ce", "eval_loss", "gold_eval_loss"):
        a = [r[key] for r in kd if r[key] is not None]
        b = [r[key] for r in sft if r[key] is not None]
        assert a == pytest.approx(b, rel=1e-4)


def test_mixture_of_parts(tmp_path, inputs):
    """train_loss = α·ce + (1 − α)·T²·kl in every row (Hinton et al. 2015, section 2)."""
    _, rows, _ = run(tmp_path, params("kd", pipeline={"alpha": 0.3, "temperature": 2.0}, micro_batch_size=2), inputs)
    for row in rows:
        assert row["train_loss"] == pytest.approx(0.3 * row["ce"] + 0.7 * 4 * row["kl"], rel=1e-5)


def test_another_vocabulary_is_refused_before_training(tmp_path, data):
    cache = make_cache(tmp_path / "cache", data, {**TEACHER, "vocabulary": 400})
    meter = CountingMeter()
    with pytest.raises(UserError, match="vocabulary mismatch"):
        run(
            tmp_path / "run",
            params("kd", pipeline={"alpha": 0.3, "temperature": 1.0}),
            {**data, "teacher_logits": cache},
            meter,
        )
    assert meter.tokens == {}


def test_a_cache_of_other_data_is_refused(tmp_path, inputs):
    from .tiny import write_rows

    write_rows(tmp_path / "other" / "train.parquet", 8, seed=9)
    write_rows(tmp_path / "other" / "validation.parquet", 4, seed=10)
    with pytest.raises(UserError, match="holds no example 'e9-"):
        run(
            tmp_path / "run",
            params("kd", pipeline={"alpha": 0.3, "temperature": 1.0}),
            {**inputs, "data": tmp_path / "other"},
        )


@pytest.mark.parametrize("missing", ["alpha", "temperature"])
def test_missing_hyperparameter_is_named(tmp_path, inputs, missing):
    with pytest.raises(UserError, match=f"{missing} is missing"):
        run(tmp_path, params("kd", pipeline={"alpha": 0.3, "temperature": 1.0} | {missing: None}), inputs)
