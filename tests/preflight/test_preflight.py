"""What is wrong with a study is said before anything is paid for, each thing in one line."""

import copy
import http.server
import json
import socket
import threading

import pytest
import torch
import yaml
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, T5Config

from distill_energy.config import parse_config
from distill_energy.config.evaluation import Judge
from distill_energy.errors import UserError
from distill_energy.models.tiny import tiny_config, tiny_tokenizer
from distill_energy.plan import build_plan
from distill_energy.preflight import check_judge, check_memory, check_weights, preflight


@pytest.fixture
def study(repo, tmp_path):
    """The smoke configuration with its models as folders: (data, folder of the teacher, folder of the student)."""
    data = yaml.safe_load((repo / "configs" / "smoke.yaml").read_text())
    folders = {}
    for name, layers in (("big", 2), ("small", 1)):
        folders[name] = tmp_path / name
        torch.manual_seed(0)
        LlamaForCausalLM(tiny_config({"layers": layers})).save_pretrained(folders[name])
        tiny_tokenizer().save_pretrained(folders[name])
        data["models"][name] = {"source": "folder", "path": str(folders[name])}
    return data, folders["big"], folders["small"]


def wrong(data, tmp_path):
    config = parse_config(copy.deepcopy(data))
    return preflight(config, build_plan(config, str(tmp_path / "results")), tmp_path / "results").wrong


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def only(found, *words):
    assert len(found) == 1, found
    assert all(word in found[0] for word in words), found
    assert "\n" not in found[0]


def test_nothing_is_wrong_with_a_study_that_runs(study, tmp_path):
    assert wrong(study[0], tmp_path) == []


def test_another_chat_template(study, tmp_path):
    data, _, small = study
    tokenizer = AutoTokenizer.from_pretrained(small)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "helper")
    tokenizer.save_pretrained(small)
    only(wrong(data, tmp_path), "student small", "chat template", "models.small.tokenizer")
    data["models"]["small"]["tokenizer"] = data["models"]["big"]["path"]
    assert wrong(data, tmp_path) == []


def test_another_tokenizer(study, tmp_path):
    data, _, small = study
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(small)
    only(wrong(data, tmp_path), "student small", "tokenizer")


def test_a_student_that_its_labels_never_stop(study, tmp_path):
    """A base student ends its text otherwise than the teacher's chat turns end."""
    data, _, small = study
    tokenizer = AutoTokenizer.from_pretrained(small)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(small)
    edit(small / "generation_config.json", eos_token_id=0)
    found = wrong(data, tmp_path)
    assert any("never stop" in line and "<|im_end|>" in line for line in found), found


def test_positions(study, tmp_path):
    data, _, small = study
    edit(small / "config.json", max_position_embeddings=128)
    only(wrong(data, tmp_path), "dataset demo", "max_length 256", "128 positions of model small")


@pytest.mark.parametrize("harm", ["cut", "pointer", "missing", "header"])
def test_damaged_weights(study, tmp_path, harm):
    data, big, _ = study
    path = big / "model.safetensors"
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[:-7])
    elif harm == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    elif harm == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:8] + b"x" * (len(content) - 8))
    word = {"cut": "cut off", "pointer": "git LFS pointer", "missing": "no weights", "header": "damaged"}[harm]
    only(wrong(data, tmp_path), "model big", word)


def test_a_shard_that_is_missing(tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config({"layers": 2})).save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    check_weights(tmp_path)
    shards[-1].unlink()
    with pytest.raises(UserError, match=f"{shards[-1].name} is missing"):
        check_weights(tmp_path)


def test_what_is_no_causal_language_model(study, tmp_path):
    data, big, _ = study
    T5Config(d_model=8, num_layers=1, num_heads=1, d_kv=8, d_ff=8, vocab_size=384).save_pretrained(big)
    only(wrong(data, tmp_path), "model big", "encoder-decoder")
    (big / "config.json").write_text(json.dumps({"model_type": "of-nobody"}))
    only(wrong(data, tmp_path), "model big", "of-nobody")


def test_a_quantisation_without_its_package(study, tmp_path):
    data, big, _ = study
    edit(big / "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    only(wrong(data, tmp_path), "model big", "gptq")


def test_learned_positions_are_limits_too(study, tmp_path):
    data, _, small = study
    GPT2LMHeadModel(
        GPT2Config(vocab_size=384, n_positions=64, n_embd=8, n_layer=1, n_head=1, eos_token_id=2)
    ).save_pretrained(small)
    only(wrong(data, tmp_path), "64 positions of model small")


def test_logits_that_an_output_layer_does_not_give(study, tmp_path, monkeypatch):
    """Asked of the architecture itself, on one layer of it."""
    data, _, _ = study
    whole = LlamaForCausalLM.forward

    def bent(self, *args, **kwargs):
        out = whole(self, *args, **kwargs)
        out.logits = out.logits + torch.arange(out.logits.shape[-1])
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", bent)
    found = wrong(data, tmp_path)
    assert any("model big" in line and "output layer" in line for line in found), found


def test_rows_that_the_template_refuses(study, tmp_path):
    data, big, small = study
    for folder in (big, small):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
            "{% endfor %}" + tokenizer.chat_template
        )
        tokenizer.save_pretrained(folder)
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": r, "content": "a"} for r in ("user", "tool", "assistant")]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    data["datasets"]["demo"] = {
        "source": "files", "path": str(rows), "format": "messages", "n_train": 1, "n_validation": 1, "max_length": 64,
    }  # fmt: skip
    only(wrong(data, tmp_path), "dataset demo", "rows.jsonl, row 1", "no tools here")
    rows.unlink()
    only(wrong(data, tmp_path), "dataset demo", "rows.jsonl: none found")


def test_tokens_beyond_the_embedding(study, tmp_path):
    """Chat tokens that were added to the tokenizer and not to the model."""
    data, big, small = study
    for folder in (big, small):
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
        tokenizer.chat_template = "<turn>" + tokenizer.chat_template
        tokenizer.save_pretrained(folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    data["datasets"]["demo"] = {
        "source": "files", "path": str(rows), "format": "prompt_response", "n_train": 1, "n_validation": 1,
        "max_length": 64,
    }  # fmt: skip
    found = wrong(data, tmp_path)
    assert any("token id 384" in line and "384 of model big" in line for line in found), found


def test_memory(study, tmp_path):
    config = parse_config(study[0])
    node = build_plan(config, str(tmp_path / "results")).of("student_training")[0]

    class Large:
        parameters = 13_000_000_000

    with pytest.raises(UserError, match=r"at least 104\.0 GB, the GPU has 80\.0"):
        check_memory(node, Large(), (80 * 10**9, "the GPU"))
    check_memory(node, Large(), (200 * 10**9, "the GPU"))


def test_a_judge_that_does_not_answer():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    judge = {"kind": "openai", "model": "m", "base_url": f"http://127.0.0.1:{port}/v1", "api_key_env": "NO_SUCH_KEY"}
    with pytest.raises(UserError, match=rf"http://127\.0\.0\.1:{port}/v1.*refused"):
        check_judge(Judge(**judge))
    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        check_judge(Judge(**judge | {"base_url": None}))


@pytest.fixture
def asked(monkeypatch):
    """A judge's server that takes one key and knows one model: (base URL, the bodies it was sent)."""
    bodies = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append(body)
            if self.headers.get("Authorization") != "Bearer right":
                return self.send_error(401)
            if body["model"] != "m":
                return self.send_error(404, "no such model")
            answer = json.dumps({"choices": [{"message": {"content": "A"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    server.shutdown()
    server.server_close()


def test_a_judges_key_and_model_are_tried_with_one_token(asked, monkeypatch):
    url, bodies = asked
    judge = {"kind": "openai", "model": "m", "base_url": url, "api_key_env": "JUDGE_KEY"}
    with pytest.raises(UserError, match="wants a key: set JUDGE_KEY"):
        check_judge(Judge(**judge))
    monkeypatch.setenv("JUDGE_KEY", "wrong")
    with pytest.raises(UserError, match="refuses the key in JUDGE_KEY") as caught:
        check_judge(Judge(**judge))
    assert "wrong" not in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setenv("JUDGE_KEY", "right")
    with pytest.raises(UserError, match="404"):
        check_judge(Judge(**judge | {"model": "other"}))
    bodies.clear()
    check_judge(Judge(**judge))
    assert [body["max_tokens"] for body in bodies] == [1]


def test_a_large_model_is_not_drawn(study, tmp_path):
    data, big, _ = study
    edit(big / "config.json", hidden_size=16384, intermediate_size=65536, num_attention_heads=8, num_key_value_heads=8)
    config = parse_config(data)
    found = preflight(config, build_plan(config, str(tmp_path / "results")), tmp_path / "results")
    assert any("asked when it is loaded" in line for line in found.checked)
    assert LlamaConfig.from_pretrained(big).hidden_size == 16384


def test_a_second_teacher_of_another_tokenizer(study, tmp_path):
    data, _, _ = study
    other = tmp_path / "other"
    LlamaForCausalLM(tiny_config({"layers": 1})).save_pretrained(other)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(other)
    data["models"]["other"] = {"source": "folder", "path": str(other)}
    data["teachers"] = ["big", "other"]
    found = wrong(data, tmp_path)
    assert any(line.startswith("teacher other: its tokenizer") for line in found), found


def test_a_grid_series_that_cannot_be_read(study, tmp_path):
    """It is asked for when the answer is written, long after the joules were spent."""
    data, _, _ = study
    path = tmp_path / "grid.csv"
    path.write_text("utc,g_per_kwh\nyesterday,100\n")
    data["energy"]["grid"] = {"series": str(path)}
    only(wrong(data, tmp_path), "grid.csv, line 2", "not a time and a number")


@pytest.fixture
def packaged(study, tmp_path, monkeypatch):
    """The study with its teacher as a GGUF file in a package: (data, the file)."""
    data, _, _ = study
    place = tmp_path / "packages" / "tiny_gguf"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(place.parent))
    path = place / f"{tmp_path.name}.gguf"
    write_gguf(path)
    for name in ("big", "small"):
        data["models"][name] = {"source": "gguf", "package": "tiny_gguf"}
    data["models"]["small"] = {"source": "pruned", "of": "big", "layers": 1}
    return data, path


def write_gguf(path, template=True, vocabulary=384, positions=2048):
    """A GGUF file of a tiny Llama, as converters write it."""
    gguf = pytest.importorskip("gguf")
    tokenizer = tiny_tokenizer(vocabulary)
    model = LlamaForCausalLM(tiny_config({"layers": 2, "vocabulary": vocabulary}))
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(vocabulary)
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    words[-1] = "ab"
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<|") else 1 for word in words])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    if template:
        writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, (".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_packaged_model_is_looked_at_by_its_header(packaged, tmp_path):
    data, _ = packaged
    config = parse_config(copy.deepcopy(data))
    found = preflight(config, build_plan(config, str(tmp_path / "results")), tmp_path / "results")
    assert found.wrong == []
    assert any(line.startswith("model big:") and "parameters" in line for line in found.checked), found.checked
    assert not (tmp_path / "results" / "preprocess").exists()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("template", ["model big", "no chat template"]),
        ("positions", ["dataset demo", "max_length 256", "128 positions"]),
        ("cut", ["model big", "cut off"]),
        ("pointer", ["model big", "git LFS pointer"]),
        ("other", ["model big", "GGUF"]),
    ],
)
def test_a_packaged_model_that_would_fail_once_it_is_converted(packaged, tmp_path, harm, words):
    data, path = packaged
    if harm == "template":
        write_gguf(path, template=False)
    elif harm == "positions":
        write_gguf(path, positions=128)
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    else:
        path.write_bytes(b"not a model" * 9)
    found = wrong(data, tmp_path)
    assert found and all(word in found[0] for word in words) and "\n" not in found[0], found


def test_adapters_that_find_no_target(study, tmp_path):
    data, _, _ = study
    data["pipelines"]["adapted"] = {"kind": "lora", "options": {"targets": ["nothing_like_it"]}}
    only(wrong(data, tmp_path), "model small", "lora", "nothing_like_it")
