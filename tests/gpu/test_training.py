"""Training on a CUDA GPU: what the CPU tests cannot show. Skipped without one (``pytest -m gpu`` runs only these)."""

import pytest
import torch

from distill_energy.errors import UserError
from tests.train.tiny import CountingMeter, params, run, write_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

WIDE = {"source": "random", "layers": 4, "hidden": 256, "heads": 4, "vocabulary": 8192, "seed": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "data" / "train.parquet", 128, seed=1, longest=64)
    write_rows(folder / "data" / "validation.parquet", 16, seed=2, longest=64)
    return {"data": folder / "data"}


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast", "bf16_stochastic", "bf16"])
@pytest.mark.parametrize("packing", [False, True])
def test_learns_in_every_precision(tmp_path, data, precision, packing):
    results, rows, _ = run(
        tmp_path, params(model=WIDE, precision=precision, packing=packing, max_steps=40, eval_every=20), data
    )
    assert results["precision"] == precision and results["precision_note"] is None
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.3


def test_the_gpu_computes_what_the_cpu_does(tmp_path, data, monkeypatch):
    from distill_energy.train import run as training

    _, there, _ = run(tmp_path / "gpu", params(model=WIDE, max_steps=6), data)
    monkeypatch.setattr(training.torch.cuda, "is_available", lambda: False)
    _, here, _ = run(tmp_path / "cpu", params(model=WIDE, max_steps=6), data)
    assert [r["train_loss"] for r in there] == pytest.approx([r["train_loss"] for r in here], rel=1e-2)


def test_resumed_run_goes_on(tmp_path, data):
    """From the last checkpoint: generators and optimiser states are back on the device."""
    parameters = params(model=WIDE, max_steps=20, checkpoint_every=6, precision="bf16_stochastic")
    _, whole, _ = run(tmp_path, parameters, data)
    _, again, _ = run(tmp_path, parameters, data)
    assert [r["train_loss"] for r in again] == pytest.approx([r["train_loss"] for r in whole], rel=2e-2)


def test_gradient_checkpointing_saves_memory(tmp_path, data):
    def peak(folder, **changes) -> int:
        torch.cuda.reset_peak_memory_stats()
        run(folder, params(model={**WIDE, "layers": 16}, max_steps=2, batch_size=64, **changes), data)
        return torch.cuda.max_memory_allocated()

    assert peak(tmp_path / "b", gradient_checkpointing=True) < 0.8 * peak(tmp_path / "a")


@pytest.mark.parametrize("precision", ["bf16_autocast", "bf16_stochastic"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_without_a_mask_learn_what_padded_ones_do(tmp_path, data, precision, checkpointing):
    """The kernel is PyTorch's variable-length flash attention; batches of one seed hold the same examples."""
    pytest.importorskip("torch.nn.attention.varlen", reason="needs PyTorch 2.10")
    changes = {"model": WIDE, "precision": precision, "max_steps": 6, "batch_size": 128}
    dense, a, _ = run(tmp_path / "a", params(packing=False, **changes), data)
    packed = {"packing": True, "micro_batch_tokens": 2048, "gradient_checkpointing": checkpointing}
    ragged, b, _ = run(tmp_path / "b", params(**packed, **changes), data)
    assert (dense["attention"], ragged["attention"]) == ("sdpa", "ragged")
    assert [r["train_loss"] for r in a] == pytest.approx([r["train_loss"] for r in b], rel=1e-2)


@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_keeps_packed_examples_apart(window):
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

    from distill_energy.models.packing import leakage
    from distill_energy.models.ragged import attend_ragged

    pytest.importorskip("torch.nn.attention.varlen", reason="needs PyTorch 2.10")
    size = {"vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**size) if window is None else MistralConfig(sliding_window=window, **size)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda()
    dense = leakage(model)
    if not attend_ragged(model, autocast=False):
        assert window is not None  # an older PyTorch's kernel has no windows
        return
    assert leakage(model) < max(5e-2, 2 * dense)


def test_the_teachers_rows_are_those_of_a_cpu(tmp_path, monkeypatch):
    """Encoded by the batch and packed in another thread."""
    import numpy as np

    from distill_energy.kd.cache.reader import CacheReader
    from distill_energy.teacher import logits as stage
    from tests.kd.stage_context import context

    write_rows(tmp_path / "a" / "data" / "train.parquet", 40, seed=1, longest=64)
    write_rows(tmp_path / "b" / "data" / "train.parquet", 40, seed=1, longest=64)
    params = {"method": "head_tail", "head": 8, "tail": 8, "audit_examples": 2, "batch_tokens": 512}
    there, here = (context(tmp_path / name, params) for name in "ab")
    stage.main(there)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        stage.main(here)
    assert there.meter.tokens == here.meter.tokens
    found, expected = (CacheReader(c.out) for c in (there, here))
    same = []
    for name in (f"e1-{i}" for i in range(40)):
        one, other = found.batch([name]), expected.batch([name])
        assert one.ids.shape[0] == other.ids.shape[0]
        same.append((one.ids[:, :8] == other.ids[:, :8]).mean())
        np.testing.assert_allclose(one.tail_lse, other.tail_lse, atol=2e-2)
    assert np.mean(same) > 0.97


@pytest.mark.slow
def test_compiled(tmp_path, data):
    _, plain, _ = run(tmp_path / "a", params(model=WIDE, max_steps=4), data)
    _, compiled, _ = run(tmp_path / "b", params(model=WIDE, max_steps=4, compile=True), data)
    assert [r["train_loss"] for r in plain] == pytest.approx([r["train_loss"] for r in compiled], rel=1e-2)


def test_too_little_memory_is_one_line(tmp_path, data):
    """The allocator is told to stop early, as it would on a small GPU."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(UserError, match=r"out of memory with micro-batches of 64 examples; lower"):
            run(tmp_path, params(model={**WIDE, "hidden": 1024}, batch_size=64), data)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_more_processes_than_gpus(tmp_path, data):
    count = torch.cuda.device_count() + 1
    with pytest.raises(UserError, match=rf"training\.processes is {count}, this host has {count - 1} GPUs"):
        run(tmp_path, params(processes=count, batch_size=count), data)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_gpus_train_as_one(tmp_path, data, sharding):
    one_meter, two_meter = CountingMeter(), CountingMeter()
    _, one, _ = run(tmp_path / "one", params(model=WIDE, max_steps=8), data, one_meter)
    _, two, _ = run(tmp_path / "two", params(model=WIDE, max_steps=8, processes=2, sharding=sharding), data, two_meter)
    assert [r["train_loss"] for r in one] == pytest.approx([r["train_loss"] for r in two], rel=1e-2)
    assert one_meter.tokens["processed"] == two_meter.tokens["processed"]


@pytest.fixture
def liger():
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("casting", [False, True])
def test_liger_gives_our_loss_and_gradients(biased, casting):
    """Rows over several of Liger's chunks; fp32 weights, with and without bfloat16 products."""
    from distill_energy.kd.losses.ce import ce_loss

    torch.manual_seed(0)
    hidden = torch.randn(700, 256, device="cuda", requires_grad=True)
    weight = (torch.randn(8192, 256, device="cuda") * 0.05).requires_grad_()
    bias = torch.randn(8192, device="cuda").requires_grad_() if biased else None
    labels = torch.randint(8192, (700,), device="cuda")
    inputs = [hidden, weight, *([bias] if biased else [])]
    found = []
    for kernel in ("chunks", "liger"):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=casting):
            loss = ce_loss(hidden, weight, labels, bias=bias, kernel=kernel).loss
        found.append([loss.detach(), *torch.autograd.grad(loss / 700, inputs)])
    ours, theirs = found
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-2 if casting else 1e-5)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > (0.999 if casting else 0.99999)


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("precision", ["bf16_autocast", "bf16_stochastic"])
def test_liger_trains_as_our_chunks_do(tmp_path, data, precision):
    changes = {"model": WIDE, "precision": precision, "max_steps": 6}
    ours, a, _ = run(tmp_path / "a", params(liger=False, **changes), data)
    theirs, b, _ = run(tmp_path / "b", params(liger=True, **changes), data)
    assert (ours["ce_kernel"], theirs["ce_kernel"].split()[0]) == ("chunks", "liger")
    assert [r["train_loss"] for r in a] == pytest.approx([r["train_loss"] for r in b], rel=2e-2)
