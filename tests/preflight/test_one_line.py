"""What is wrong with a model or its data ends in one line with the key, file or row: no traceback, nothing spent."""

import json
import shutil

import pytest
import torch
import yaml
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5Config,
)

from distill_energy.__main__ import main
from distill_energy.errors import UserError
from distill_energy.models.sources import load_model, load_tokenizer
from distill_energy.models.tiny import tiny_config, tiny_tokenizer


class Study:
    """The smoke study on folders; ``rows`` are its data."""

    def __init__(self, repo, folder):
        self.folder = folder
        self.data = yaml.safe_load((repo / "configs" / "smoke.yaml").read_text())
        self.big, self.small, self.rows = folder / "big", folder / "small", folder / "rows.jsonl"
        for name, layers in (("big", 2), ("small", 1)):
            torch.manual_seed(0)
            LlamaForCausalLM(tiny_config({"layers": layers})).save_pretrained(folder / name)
            tiny_tokenizer().save_pretrained(folder / name)
            self.data["models"][name] = {"source": "folder", "path": str(folder / name)}
        self.rows.write_text("".join(json.dumps({"prompt": f"p{i}", "response": "r"}) + "\n" for i in range(9)))
        self.data["datasets"]["demo"] = {
            "source": "files", "path": str(self.rows), "format": "prompt_response", "n_train": 4, "n_validation": 2,
            "max_length": 64,
        }  # fmt: skip

    def edit(self, file, **changes):
        path = self.big / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def template(self, change):
        for folder in (self.big, self.small):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.chat_template = change(tokenizer.chat_template)
            (folder / "chat_template.jinja").unlink()
            tokenizer.save_pretrained(folder)

    def shorten(self):
        path = self.big / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])

    def point(self):
        (self.big / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
        )

    def beyond(self):
        for folder in (self.big, self.small):
            tokenizer = tiny_tokenizer()
            tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
            tokenizer.chat_template = "<turn>" + tokenizer.chat_template
            tokenizer.save_pretrained(folder)

    def encoder_decoder(self):
        T5Config(d_model=8, num_layers=1, num_heads=1, d_kv=8, d_ff=8, vocab_size=384).save_pretrained(self.big)

    def gpt2(self):
        config = GPT2Config(vocab_size=384, n_positions=32, n_embd=8, n_layer=1, n_head=1, eos_token_id=2)
        GPT2LMHeadModel(config).save_pretrained(self.small)

    def custom(self):
        """A configuration whose code would leave a trace if it were run."""
        self.edit("config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.M"})
        (self.big / "own.py").write_text(f"open({str(self.folder / 'ran')!r}, 'w')\nclass Own: pass\nclass M: pass\n")

    def capped(self):
        config = Gemma2Config(
            vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, eos_token_id=2, bos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        Gemma2ForCausalLM(config).save_pretrained(self.small)
        self.data["training"]["liger"] = True

    def row(self, text):
        self.rows.write_text(text + self.rows.read_text())


CASES = {
    "template that is no template": (lambda s: s.template(lambda t: t + "{% if %}"), ["model big", "chat template"]),
    "template that refuses": (
        lambda s: s.template(lambda t: "{% if messages[0].content=='p1' %}{{ raise_exception('no') }}{% endif %}" + t),
        ["dataset demo", "rows.jsonl, row 2", "chat template: no"],
    ),
    "template with today's date": (
        lambda s: s.template(lambda t: "{% set f = '%d' %}{{ strftime_now(f) }}" + t), ["model big", "date"],
    ),
    "no template": (lambda s: s.template(lambda t: None), ["model big", "no chat template"]),
    "ids beyond the embedding": (Study.beyond, ["token id 384", "384 of model big"]),
    "positions of GPT-2": (Study.gpt2, ["max_length 64", "32 positions of model small"]),
    "max_length beyond the positions": (
        lambda s: s.edit("config.json", max_position_embeddings=48), ["max_length 64", "48 positions of model big"],
    ),
    "truncated weights": (Study.shorten, ["model big", "model.safetensors", "cut off"]),
    "a pointer": (Study.point, ["model big", "model.safetensors", "git LFS pointer"]),
    "an unknown architecture": (lambda s: s.edit("config.json", model_type="of-nobody"), ["model big", "of-nobody"]),
    "an encoder and decoder": (Study.encoder_decoder, ["model big", "encoder-decoder", "t5"]),
    "GPTQ without its package": (
        lambda s: s.edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32}),
        ["model big", "gptq"],
    ),
    "code of its own": (Study.custom, ["model big", "code of its own"]),
    "no model": (lambda s: shutil.rmtree(s.big), ["model big", "no config.json"]),
    "a config that is no JSON": (lambda s: (s.big / "config.json").write_text("{"), ["model big", "config"]),
    "a kernel without the soft cap": (Study.capped, ["model small", "training.liger", "soft cap"]),
    "a row that is no JSON": (lambda s: s.row("{\n"), ["dataset demo", "rows.jsonl, line 1"]),
    "a row that is no object": (lambda s: s.row("7\n"), ["dataset demo", "rows.jsonl, row 1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_line_says_what_is_wrong(case, repo, tmp_path, capsys):
    study = Study(repo, tmp_path)
    harm, words = CASES[case]
    harm(study)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(study.data))
    assert main(["preflight", str(config), "--results", str(tmp_path / "results")]) == 1
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if ": wrong: " in line]
    assert any(all(word in line for word in words) for line in lines), said.out
    assert "Traceback" not in said.out + said.err and "nothing was spent" in said.out
    assert not (tmp_path / "ran").exists()  # a model's own code is not run to look at it


@pytest.mark.parametrize("case", [
    "no template", "truncated weights", "a pointer", "an unknown architecture", "an encoder and decoder",
    "GPTQ without its package", "code of its own", "no model", "a config that is no JSON",
])  # fmt: skip
def test_a_stage_that_loads_it_says_so_too(case, repo, tmp_path):
    """Without a preflight: in the stage itself, one line as well."""
    study = Study(repo, tmp_path)
    CASES[case][0](study)
    spec = {"source": "folder", "path": str(study.big)}
    with pytest.raises(UserError) as caught:
        load_model(spec, {}, "float32", "cpu")
        load_tokenizer(spec, {})
    assert "\n" not in str(caught.value) and "big" in str(caught.value)
    assert not (tmp_path / "ran").exists()
