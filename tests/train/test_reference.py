"""The harness's choices, together and alone."""

import pytest

from distill_energy.config.training import Reference, Training
from distill_energy.train.reference import choices

from .tiny import params, run


def recipe(asked):
    return Training.model_validate({"max_steps": 3, "reference_faithful": asked})


def test_nothing_is_on_by_default():
    own = choices(recipe(None), "kd")
    assert own.scale_parameter and own.keeps_best
    assert own.eval_every(50) == 50 and own.schedule_stretch() == 1 and own.precision("fp32") == "fp32"
    assert own.divisor(100, 30, 4) == 100


def test_all_of_them():
    sft, kd = (choices(recipe(True), kind) for kind in ("sft", "kd"))
    assert (sft.scale_parameter, kd.scale_parameter) == (False, True)
    assert (sft.eval_every(100), kd.eval_every(100)) == (100, 6)
    assert sft.precision("bf16_autocast") == "bf16"
    assert (sft.divisor(100, 30, 4), kd.divisor(100, 30, 4)) == (30, 4)
    assert not sft.keeps_best


def test_stopping_rule():
    rule = choices(recipe({"stop_on_two_rises": True}), "sft")
    assert not rule.stops([1.0, 2.0], 99, 3)
    assert rule.stops([1.0, 2.0, 2.1], 0, 3)
    assert not rule.stops([3.0, 2.0, 2.5], 99, 3)  # above one of the two only
    assert not choices(recipe(True), "kd").stops([1.0, 2.0, 3.0], 99, 3)


def test_each_alone():
    for name in Reference.model_fields:
        on = choices(recipe({name: True}), "kd").on
        assert [key for key, value in on if value] == [name]


def test_the_cosine_hardly_falls(tmp_path, data):
    """After all steps the rate has gone 1/16 of its way: cos²(π/32) of the peak."""
    _, rows, _ = run(
        tmp_path, params(reference_faithful={"schedule_in_micro_batches": True}, max_steps=20, warmup_steps=0), data
    )
    assert rows[-1]["lr"] > 0.985 * 3e-3
    _, rows, _ = run(tmp_path / "own", params(max_steps=20, warmup_steps=0), data)
    assert rows[-1]["lr"] < 0.01 * 3e-3


def test_bf16_weights_hardly_change(tmp_path, data):
    """At a small rate most weights stay what they are without a float32 copy, and few do with stochastic rounding."""
    small = {"learning_rate": 1e-4, "optimizer": "adafactor", "max_steps": 4}
    plain, _, _ = run(tmp_path / "a", params(reference_faithful={"bf16_weights": True}, **small), data)
    copied, _, _ = run(tmp_path / "b", params(precision="bf16_autocast", **small), data)
    assert plain["share_changed"] < 0.1 < 0.9 < copied["share_changed"]


def test_last_weights(tmp_path, data):
    bad = {"learning_rate": 5.0, "max_steps": 6, "eval_every": 2, "warmup_steps": 0, "patience": 99}
    _, _, best = run(tmp_path / "a", params(**bad), data)
    _, _, last = run(tmp_path / "b", params(reference_faithful={"last_weights": True}, **bad), data)
    a, b = ((c.out / "model" / "model.safetensors").read_bytes() for c in (best, last))
    assert a != b


@pytest.mark.parametrize("kind", ["sft", "synthetic"])
def test_all_of_them_train(tmp_path, data, kind):
    results, _, _ = run(tmp_path, params(kind, reference_faithful=True, max_steps=4), data)
    assert results["steps"] == 4
