"""Encoding and packing: every stored number comes back, within the bound that the format states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill_energy.config.sources import Logits
from distill_energy.errors import UserError
from distill_energy.kd.cache import CacheSpec, encode_rows, pack, uniforms, unpack
from distill_energy.kd.cache.codec import unpack_batch
from distill_energy.kd.cache.encode import concatenate
from distill_energy.kd.losses.teacher import collate_teacher


def logits(n: int, vocabulary: int, seed: int = 0, scale: float = 2.5) -> torch.Tensor:
    """Gaussian logits with a heavy upper tail: a language model's falls off about so."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, scale, (n, vocabulary)) + rng.exponential(1.5, (n, vocabulary))
    return torch.from_numpy(z.astype(np.float32))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    method=st.sampled_from(["topk", "sampled", "head_tail"]),
    vocabulary=st.sampled_from([2, 3, 255, 256, 257, 65536, 65537, 131073]),
    head=st.integers(1, 70),
    tail=st.one_of(st.integers(1, 70), st.just(300)),
    bits=st.sampled_from([8, 16]),
    n=st.integers(0, 9),
    seed=st.integers(0, 100),
    confident=st.booleans(),
)
def test_what_is_packed_is_what_was_encoded(method, vocabulary, head, tail, bits, n, seed, confident):
    spec = CacheSpec(method=method, vocab_size=vocabulary, head=head, tail=tail, value_bits=bits)
    z = logits(n, vocabulary, seed)
    if confident and n:
        z[0, seed % vocabulary] = 60  # a token that is certain
    encoded = encode_rows(z, spec, uniforms(seed, "x", n), chunk_rows=4)
    rows = unpack(pack(encoded, spec), spec)
    k, step = spec.head, np.float32(spec.value_step)
    assert len(rows) == n and rows.ids.dtype == np.int32
    np.testing.assert_array_equal(rows.ids[:, :k], encoded.head_ids)
    np.testing.assert_allclose(rows.logits[:, :k], -encoded.head_codes * step)
    present = encoded.tail_ids >= 0
    width = rows.ids.shape[1] - k
    assert not present[:, width:].any()
    present = present[:, :width]
    np.testing.assert_array_equal(rows.counts > 0, present)
    np.testing.assert_array_equal(rows.ids[:, k:][present], encoded.tail_ids[:, :width][present])
    np.testing.assert_array_equal(rows.counts[present], encoded.tail_counts[:, :width][present])
    below = rows.logits[:, k - 1 : k] if k else np.zeros((n, 1), np.float32)
    expected = below - encoded.tail_codes[:, :width] * np.float32(spec.tail_step)
    np.testing.assert_allclose(rows.logits[:, k:][present], expected[present])
    stored = encoded.lse_codes.astype(float) * 1e-3 - 40
    np.testing.assert_allclose(
        rows.tail_lse[encoded.lse_codes > 0], stored[encoded.lse_codes > 0], rtol=1e-6, atol=1e-5
    )
    assert np.isneginf(rows.tail_lse[encoded.lse_codes == 0]).all()


@pytest.mark.parametrize("method", ["topk", "sampled", "head_tail"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_batch_holds_its_examples_one_after_another(method, bits):
    """Also where some have as many distinct draws as draws, and some no tokens at all."""
    spec = CacheSpec(method=method, vocab_size=70_000, head=12, tail=8, value_bits=bits)
    packed = []
    for i, n in enumerate((5, 0, 1, 7, 3)):
        z = logits(n, spec.vocab_size, i)
        if i == 3:
            z = z / 100  # all tokens alike: no draw meets another
        if i == 4:
            z[:, : spec.head + 1] = 60  # one token is left to draw
        packed.append(pack(encode_rows(z, spec, uniforms(i, "x", n)), spec))
    if spec.tail:
        full = [p.tail_total == p.tokens * spec.tail for p in packed if p.tokens]
        assert any(full) and not all(full)
    batch, at = unpack_batch(packed, spec), 0
    for rows in (unpack(p, spec) for p in packed):
        piece, width = slice(at, at + len(rows)), rows.ids.shape[1]
        for name in ("ids", "logits", "counts"):
            here, alone = getattr(batch, name)[piece], getattr(rows, name)
            present = slice(0, alone.shape[1])
            np.testing.assert_array_equal(here[:, present][:, :12], alone[:, :12])
            if name == "counts":
                assert not here[:, alone.shape[1] :].any()
        drawn = rows.counts > 0
        for name in ("ids", "logits"):
            here, alone = getattr(batch, name)[piece, :width], getattr(rows, name)
            np.testing.assert_array_equal(here[:, spec.head :][drawn], alone[:, spec.head :][drawn])
        np.testing.assert_array_equal(batch.tail_lse[piece], rows.tail_lse)
        at += len(rows)
    assert at == len(batch)


@pytest.mark.parametrize(
    ("method", "bits", "step"), [("head_tail", 8, 1 / 16), ("sampled", 8, 1 / 16), ("topk", 16, 1 / 256)]
)
def test_stored_values_are_within_half_a_step(method, bits, step):
    spec = CacheSpec(method=method, vocab_size=5000, head=40, tail=40, value_bits=bits, value_step=step)
    z = logits(50, 5000)
    rows = unpack(pack(encode_rows(z, spec, uniforms(0, "x", 50)), spec), spec)
    reference = z.max(1).values if spec.head else z.logsumexp(1)
    exact = np.take_along_axis((z - reference[:, None]).numpy(), rows.ids, 1)
    if spec.tail:  # what the bits can hold below the last of the head
        low = rows.logits[:, spec.head - 1 : spec.head] if spec.head else 0
        exact[:, spec.head :] = np.maximum(exact[:, spec.head :], low - (2**bits - 1) * spec.tail_step)
    valid = np.concatenate([np.ones((50, spec.head), bool), rows.counts > 0], 1)
    steps = np.concatenate([np.full(spec.head, step), np.full(rows.counts.shape[1], spec.tail_step)])
    off = (np.abs(exact - rows.logits) / steps)[valid]
    assert 0.25 < off.max() <= 0.5 + 1e-3  # it is quantised


def test_head_is_the_top_and_tail_lies_outside():
    spec = CacheSpec(vocab_size=3000, head=32, tail=32)
    z = logits(40, 3000)
    rows = unpack(pack(encode_rows(z, spec, uniforms(0, "x", 40)), spec), spec)
    top = z.topk(32).indices.numpy()
    np.testing.assert_array_equal(rows.ids[:, :32], top)
    for row, counts, head in zip(rows.ids[:, 32:], rows.counts, top, strict=True):
        drawn = row[counts > 0]
        assert not set(drawn) & set(head) and len(set(drawn)) == len(drawn)
        assert counts.sum() == 32


@pytest.mark.parametrize("method", ["sampled", "head_tail"])
def test_draws_follow_the_proposal(method):
    """Over many seeds the mean count of each token is draws·π; in one row it is off by less than one."""
    vocabulary, draws, repeats = 60, 20, 4000
    spec = CacheSpec(method=method, vocab_size=vocabulary, head=4, tail=draws)
    z = logits(1, vocabulary, scale=1.5)
    u = np.random.default_rng(0).random(repeats)
    encoded = encode_rows(z.expand(repeats, -1), spec, u)
    counts = np.zeros((repeats, vocabulary))
    for row in range(repeats):
        present = encoded.tail_ids[row] >= 0
        counts[row, encoded.tail_ids[row, present]] = encoded.tail_counts[row, present]
    tail = z.clone()
    if spec.head:
        tail.scatter_(1, z.topk(spec.head).indices, float("-inf"))
    proposal = torch.stack([torch.softmax(tail / t, -1) for t in spec.proposal_temperatures]).mean(0)[0].numpy()
    assert np.abs(counts - draws * proposal).max() < 1 + 1e-3
    error = np.abs(counts.mean(0) - draws * proposal)
    assert (error < 5 * np.sqrt(0.25 / repeats)).all()


def test_samples_depend_on_seed_example_and_position_only():
    z, spec = logits(30, 500), CacheSpec(vocab_size=500, head=8, tail=8)
    whole = encode_rows(z, spec, uniforms(1, "x", 30))
    for chunk in (1, 7, 30):
        u = uniforms(1, "x", 30)
        parts = [encode_rows(z[i : i + chunk], spec, u[i : i + chunk]) for i in range(0, 30, chunk)]
        assert pack(concatenate(parts), spec).nbytes == pack(whole, spec).nbytes
        assert pack(concatenate(parts), spec).payload == pack(whole, spec).payload
    other = [uniforms(1, "y", 30), uniforms(2, "x", 30)]
    assert all((o != uniforms(1, "x", 30)).all() for o in other)
    u = uniforms(0, "x", 20000)
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.003 and u.min() >= 0 and u.max() < 1


@pytest.mark.parametrize("method", ["topk", "head_tail"])
@pytest.mark.parametrize(
    ("t", "bound"), [(1, 0.035), (1.5, 0.05), (2, 0.035), (3, 0.03), (4, 0.02), (8, 0.02), (0.7, 0.2)]
)
def test_log_normaliser_at_any_temperature(method, t, bound):
    """log Z_T against float64, at cached temperatures and between: the errors are bounded."""
    spec = CacheSpec(method=method, vocab_size=20000, head=48, tail=48)
    z = logits(60, 20000, scale=2.0)
    rows = collate_teacher([unpack(pack(encode_rows(z, spec, uniforms(0, "x", 60)), spec), spec)])
    _, logp, _ = rows.weights(t)
    got = rows.logits[:, 0] / t - logp[:, 0]
    reference = (z.max(1).values if spec.head else z.logsumexp(1)).double()
    want = torch.logsumexp((z.double() - reference[:, None]) / t, -1)
    assert (got - want).abs().max() < bound


@pytest.mark.parametrize("t", [1.0, 2.0, 4.0])
def test_quantisation_costs_little(t):
    """Mean KL(exact ‖ stored) over head and rest stays under the target of 2e-4 nats."""
    spec = CacheSpec(method="topk", vocab_size=20000, head=100)
    z = logits(100, 20000)
    rows = collate_teacher([unpack(pack(encode_rows(z, spec, uniforms(0, "x", 100)), spec), spec)])
    p_stored, _, log_tail = rows.weights(t)
    p = torch.softmax(z.double() / t, -1).gather(1, rows.ids)
    tail, tail_stored = 1 - p.sum(1), log_tail.double().exp()
    kl = (p * (p / p_stored).log()).sum(1) + tail * (tail / tail_stored).log()
    assert 0 < kl.mean() < 2e-4


def test_masked_vocabulary():
    """Logits of −∞ (padding of the output layer) are no trouble."""
    z = logits(10, 300)
    z[:, 200:] = float("-inf")
    for method in ("topk", "sampled", "head_tail"):
        spec = CacheSpec(method=method, vocab_size=300, head=250, tail=20)
        encoded = encode_rows(z, spec, uniforms(0, "x", 10), labels=torch.zeros(10, dtype=torch.long))
        assert np.isfinite(encoded.stats["entropy"]).all() and np.isfinite(encoded.stats["loss"]).all()
        for t in (1.0, 4.0):
            weights, _, _ = collate_teacher([unpack(pack(encoded, spec), spec)]).weights(t)
            assert torch.isfinite(weights).all() and torch.allclose(weights.sum(1), torch.ones(10), atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "top"}, "'top' is not one of"),
        ({"head": 0}, "needs head ≥ 1"),
        ({"tail": 0}, "needs tail ≥ 1"),
        ({"value_bits": 4}, "value_bits: 4"),
        ({"value_step": 0}, "value_step: 0"),
        ({"lse_temperatures": (0.0,)}, "lse_temperatures"),
        ({"proposal_temperatures": (5.0,)}, "must be among lse_temperatures"),
    ],
)
def test_specification_errors_name_the_key(wrong, message):
    with pytest.raises(UserError, match=message):
        CacheSpec(vocab_size=100, **wrong)


def test_specification_survives_json():
    spec = CacheSpec(vocab_size=100, method="sampled", tail=9, seed=4)
    assert CacheSpec.from_json(spec.to_json()) == spec
    with pytest.raises(UserError, match="format_version 99"):
        CacheSpec.from_json({**spec.to_json(), "format_version": 99})
    logits = Logits(method="topk", head=5, batch_tokens=9, audit_examples=2)
    assert CacheSpec.of(logits, 100).head == 5
