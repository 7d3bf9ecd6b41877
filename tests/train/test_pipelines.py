"""Kinds of pipelines: found by their file, known to the planner without torch, added as the documentation says."""

import re
import subprocess
import sys

import pytest

from distill_energy import pipelines
from distill_energy.kd import losses

from .tiny import params, run


def test_what_each_needs():
    assert {kind: pipelines.get(kind).needs for kind in pipelines.kinds()} == {
        "sft": None,
        "kd": "teacher_logits",
        "synthetic": "teacher_generation",
        "lora": None,
        "on_policy": None,
        "offline_policy": "teacher_logits",
        "preference": "teacher_generation",
        "quantised": None,
    }
    assert all(pipelines.get(kind).kind == kind for kind in pipelines.kinds())


def test_unknown_kind_lists_the_known():
    with pytest.raises(
        KeyError, match="'dpo' is not one of kd, lora, offline_policy, on_policy, preference, quantised, sft, synthetic"
    ):
        pipelines.get("dpo")


def test_the_planner_imports_nothing_heavy(repo):
    code = (
        "import sys; from distill_energy import pipelines\n"
        "[pipelines.get(k).needs for k in pipelines.kinds()]\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'pandas', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(repo / "workflow_scripts")})


def test_the_documented_example_is_a_pipeline(tmp_path, data, repo, monkeypatch):
    text = (repo / "docs" / "training.md").read_text()
    for package, folder in ((pipelines, "pipelines"), (losses, "kd/losses")):
        (code,) = re.findall(rf"```python\n# {folder}/(small\.py)\n(.*?)```", text, re.DOTALL)
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / code[0]).write_text(code[1])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / folder)])
    pipelines.kinds.cache_clear()
    pipelines.get.cache_clear()
    try:
        _, rows, _ = run(tmp_path / "a", params("small", pipeline={"options": {"weight": 0.5}}, max_steps=3), data)
        assert all(row["train_loss"] > row["ce"] + 0.01 for row in rows)
    finally:
        monkeypatch.undo()
        pipelines.kinds.cache_clear()
        pipelines.get.cache_clear()


def test_bad_option_of_lora_is_named(tmp_path, data):
    from distill_energy.errors import UserError

    with pytest.raises(UserError, match=r"options\.rank"):
        run(tmp_path, params("lora", pipeline={"options": {"rank": 0}}), data)
    with pytest.raises(UserError, match="lora"):
        run(tmp_path / "b", params("lora", pipeline={"options": {"targets": ["nothing_like_it"]}}), data)


def test_lora_on_a_weight_that_the_output_layer_shares_is_refused(tmp_path, data):
    """Merged, it would change the other: another student than was trained."""
    from distill_energy.errors import UserError

    with pytest.raises(UserError, match="embed_tokens, lm_head: the output layer's weight"):
        run(tmp_path, params("lora", pipeline={"options": {"targets": ["embed_tokens", "q_proj"]}}), data)
