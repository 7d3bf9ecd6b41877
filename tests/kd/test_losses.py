"""The losses against dense float64 truth: values, gradients, dtypes, determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill_energy.errors import UserError
from distill_energy.kd import losses
from distill_energy.kd.cache import CacheSpec, encode_rows, pack, uniforms, unpack
from distill_energy.kd.losses import kd
from distill_energy.kd.losses.ce import ce_loss
from distill_energy.kd.losses.kd import kd_loss
from distill_energy.kd.losses.reference import reference_kd_loss
from distill_energy.kd.losses.teacher import TeacherTensors, collate_teacher

N, H = 23, 6


def problem(vocabulary: int, dtype=torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, H, generator=g, dtype=torch.float64)
    weight = torch.randn(vocabulary, H, generator=g, dtype=torch.float64)
    teacher = torch.randn(N, vocabulary, generator=g, dtype=torch.float64) * 3
    labels = torch.randint(vocabulary, (N,), generator=g)
    return hidden.to(dtype), weight.to(dtype), teacher, labels


def exact_rows(teacher: torch.Tensor, spec: CacheSpec) -> TeacherTensors:
    """Unquantised float64 rows whose head is the whole vocabulary, or the top of it."""
    top, ids = teacher.topk(spec.head, dim=-1)
    rest = (teacher - top[:, :1]).scatter(1, ids, float("-inf"))
    lse = torch.stack([torch.logsumexp(rest / t, -1) for t in spec.lse_temperatures], -1)
    return TeacherTensors(ids, top - top[:, :1], torch.zeros(len(teacher), 0, dtype=torch.float64), lse, spec)


def cached_rows(teacher: torch.Tensor, spec: CacheSpec):
    return unpack(pack(encode_rows(teacher, spec, uniforms(0, "x", len(teacher))), spec), spec)


def dense(hidden, weight, teacher, labels, alpha, t):
    logits = hidden @ weight.T
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    p = torch.log_softmax(teacher / t, -1)
    kl = (p.exp() * (p - torch.log_softmax(logits / t, -1))).sum()
    return alpha * ce + (1 - alpha) * t * t * kl, ce, kl


def grads(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("chunk_rows", [1, 5, 23, 100])
def test_ce_is_the_dense_one(chunk_rows):
    hidden, weight, _, labels = problem(31)
    hidden.requires_grad_(), weight.requires_grad_()
    bias = torch.randn(31, dtype=torch.float64, requires_grad=True)
    out = ce_loss(hidden, weight, labels, chunk_rows, bias)
    want = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, labels, reduction="sum")
    torch.testing.assert_close(out.loss, want)
    assert out.means()["ce"] == pytest.approx(want.item() / N)
    for ours, theirs in zip(grads(out.loss, hidden, weight, bias), grads(want, hidden, weight, bias), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("t", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_distillation_at_alpha_1_is_cross_entropy_to_the_last_bit(t, autocast):
    hidden, weight, teacher, labels = problem(31, torch.float32)
    rows = collate_teacher([cached_rows(teacher, CacheSpec("head_tail", vocab_size=31, head=4, tail=4))])
    found = []
    for loss in (
        lambda h, w: ce_loss(h, w, labels, chunk_rows=7),
        lambda h, w: kd_loss(h, w, labels, rows, 1.0, t, chunk_rows=7),
    ):
        h, w = (x.detach().clone().requires_grad_() for x in (hidden, weight))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = loss(h, w).loss
        out.backward()
        found.append((out.detach(), h.grad, w.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("t", [0.7, 1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_kd_on_a_whole_head_is_the_dense_kl(t, alpha):
    """A head of V tokens leaves no tail: the loss must be the full KL to float64 precision."""
    hidden, weight, teacher, labels = problem(31)
    hidden.requires_grad_(), weight.requires_grad_()
    for method in ("topk", "head_tail"):
        spec = CacheSpec(method=method, vocab_size=31, head=31, tail=4)
        out = kd_loss(hidden, weight, labels, exact_rows(teacher, spec), alpha, t, chunk_rows=7)
        want, ce, kl = dense(hidden, weight, teacher, labels, alpha, t)
        torch.testing.assert_close(out.loss, want)
        torch.testing.assert_close(out.parts["ce"], ce.detach())
        torch.testing.assert_close(out.parts["kl"], kl.detach())
        for ours, theirs in zip(grads(out.loss, hidden, weight), grads(want, hidden, weight), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("t", [1.0, 2.0, 4.0])
def test_topk_is_the_kl_over_head_and_bucket(t):
    hidden, weight, teacher, labels = problem(31)
    hidden.requires_grad_(), weight.requires_grad_()
    spec = CacheSpec(method="topk", vocab_size=31, head=5)
    rows = exact_rows(teacher, spec)
    out = kd_loss(hidden, weight, labels, rows, 0.3, t, chunk_rows=7)
    logits = hidden @ weight.T
    p, q = torch.softmax(teacher / t, -1), torch.softmax(logits / t, -1)
    ph, qh = p.gather(1, rows.ids), q.gather(1, rows.ids)
    pt, qt = 1 - ph.sum(1), 1 - qh.sum(1)
    kl = (ph * (ph / qh).log()).sum() + (pt * (pt / qt).log()).sum()
    want = 0.3 * torch.nn.functional.cross_entropy(logits, labels, reduction="sum") + 0.7 * t * t * kl
    torch.testing.assert_close(out.loss, want)
    for ours, theirs in zip(grads(out.loss, hidden, weight), grads(want, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", ["topk", "sampled", "head_tail"])
@pytest.mark.parametrize("t", [1.0, 2.0, 2.5, 4.0])
def test_gradcheck_for_every_format(method, t):
    hidden, weight, teacher, labels = problem(40)
    spec = CacheSpec(method=method, vocab_size=40, head=6, tail=8)
    rows = collate_teacher([cached_rows(teacher, spec)])
    labels[0] = rows.ids[0, 0]  # a label inside the head
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    bias = torch.randn(40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda h, w, b: kd_loss(h, w, labels, rows, 0.4, t, 9, b).loss, (hidden, weight, bias), atol=1e-7
    )


def test_sampled_tail_is_unbiased_over_draws():
    """The mean gradient over many independent caches goes to the full KL's; one cache's error is far larger."""
    hidden, weight, teacher, labels = problem(400)
    hidden.requires_grad_()
    spec = CacheSpec(method="head_tail", vocab_size=400, head=8, tail=16, value_bits=16, value_step=1 / 256)
    t = 4.0
    want = grads(dense(hidden, weight, teacher, labels, 0.0, t)[0], hidden)[0]
    errors, mean = [], torch.zeros_like(want)
    draws = 200
    for i in range(draws):
        rows = unpack(pack(encode_rows(teacher, spec, uniforms(i, "x", N)), spec), spec)
        got = grads(kd_loss(hidden, weight, labels, collate_teacher([rows]), 0.0, t).loss, hidden)[0]
        errors.append((got - want).norm())
        mean += got / draws
    assert (mean - want).norm() < 3 * torch.stack(errors).mean() / draws**0.5
    assert (mean - want).norm() < 0.1 * torch.stack(errors).mean()


def test_weights_may_be_walked_twice_when_small_and_only_once_when_large(monkeypatch):
    from distill_energy.kd.losses import linear

    hidden, weight, _, labels = problem(31)
    hidden.requires_grad_(), weight.requires_grad_()
    loss = ce_loss(hidden, weight, labels).loss
    first = torch.autograd.grad(loss * 2, weight, retain_graph=True)[0]
    second = torch.autograd.grad(loss, weight)[0]
    torch.testing.assert_close(first, 2 * second)
    monkeypatch.setattr(linear, "SINGLE_USE", 0)
    loss = ce_loss(hidden, weight, labels).loss
    torch.testing.assert_close(torch.autograd.grad(loss * 2, weight, retain_graph=True)[0], first)
    with pytest.raises(RuntimeError, match="already propagated"):
        torch.autograd.grad(loss, weight)


def test_bf16_autocast_with_fp32_masters():
    hidden, weight, teacher, labels = problem(200, torch.float32)
    hidden.requires_grad_(), weight.requires_grad_()
    spec = CacheSpec(method="head_tail", vocab_size=200, head=16, tail=16)
    rows = collate_teacher([cached_rows(teacher, spec)])
    exact = kd_loss(hidden, weight, labels, rows, 0.5, 2.0)
    want = grads(exact.loss, hidden, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = kd_loss(hidden, weight, labels, rows, 0.5, 2.0)
    got = grads(out.loss, hidden, weight)
    assert out.loss.dtype == torch.float32 and all(g.dtype == torch.float32 for g in got)
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=0.01)
    assert out.loss.item() != exact.loss.item()  # bf16 products were really used
    for g, w in zip(got, want, strict=True):
        assert torch.nn.functional.cosine_similarity(g.flatten(), w.flatten(), dim=0) > 0.999


def test_same_bits_twice():
    hidden, weight, teacher, labels = problem(300, torch.float32)
    hidden.requires_grad_(), weight.requires_grad_()
    spec = CacheSpec(method="head_tail", vocab_size=300, head=16, tail=16)
    rows = collate_teacher([cached_rows(teacher, spec)])
    runs = [grads(kd_loss(hidden, weight, labels, rows, 0.5, 2.0, 5).loss, hidden, weight) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_frozen_output_layer_gets_no_gradient_and_no_grad_works():
    hidden, weight, _, labels = problem(31)
    hidden.requires_grad_()
    ce_loss(hidden, weight, labels).loss.backward()
    assert hidden.grad is not None and weight.grad is None
    weight.requires_grad_()
    with torch.no_grad():
        out = ce_loss(hidden, weight, labels)
    assert not out.loss.requires_grad
    empty = ce_loss(hidden[:0], weight, labels[:0])
    assert empty.loss.item() == 0
    empty.loss.backward()
    assert weight.grad.abs().sum() == 0


def test_reference_formula_loses_what_lies_outside_its_head():
    """On a whole head it is the full KL; on a short one at T = 4 its gradient is off, as the issue says."""
    hidden, weight, teacher, labels = problem(200)
    hidden.requires_grad_()
    want = grads(dense(hidden, weight, teacher, labels, 0.5, 4.0)[0], hidden)[0]
    logp = torch.log_softmax(teacher / 4, -1)
    for k, close in ((200, True), (5, False)):
        top, ids = logp.topk(k)
        got = grads(reference_kd_loss(hidden @ weight.T, labels, ids, top, 0.5, 4.0), hidden)[0]
        assert torch.allclose(got, want) is close


def test_collate_pads_and_keeps_order():
    _, _, teacher, _ = problem(60)
    spec = CacheSpec(method="sampled", vocab_size=60, tail=12)
    whole = encode_rows(teacher, spec, uniforms(0, "x", N))
    parts = [unpack(pack(whole.select(s), spec), spec) for s in (slice(0, 4), slice(4, 5), slice(5, N))]
    together = unpack(pack(whole, spec), spec)
    a, b = collate_teacher(parts), collate_teacher([together])
    for t in (1.0, 2.0):
        dense_a, dense_b = (torch.zeros(N, 60).scatter_add(1, x.ids, x.weights(t)[0]) for x in (a, b))
        torch.testing.assert_close(dense_a, dense_b)
        assert torch.allclose(dense_a.sum(1), torch.ones(N))
    other = CacheSpec(method="sampled", vocab_size=60, tail=13)
    with pytest.raises(UserError, match="different caches"):
        collate_teacher([together, unpack(pack(encode_rows(teacher, other, np.zeros(N)), other), other)])


def test_rows_must_match():
    hidden, weight, teacher, labels = problem(60)
    spec = CacheSpec(method="topk", vocab_size=60, head=4)
    rows = collate_teacher([cached_rows(teacher[:5], spec)])
    with pytest.raises(ValueError, match="5 teacher rows"):
        kd_loss(hidden, weight, labels, rows, 0.5, 1.0)


def test_an_objective_is_found_by_its_files_name():
    assert losses.get("kd") is kd.objective
    with pytest.raises(UserError, match="'focal'"):
        losses.get("focal")
