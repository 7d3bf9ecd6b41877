"""Refusals and warnings before a student learns from a cache."""

from __future__ import annotations

import pytest

from distill_energy.errors import UserError
from distill_energy.kd.cache import check_temperature, check_vocabulary
from distill_energy.kd.cache.checks import head_mass_at
from distill_energy.models.fingerprint import template_hash, tokenizer_hash, weights_hash
from distill_energy.models.sources import load_model, load_tokenizer


def certificate(method: str, mass=(0.965, 0.435, 0.044), audit=None) -> dict:
    head = 0 if method == "sampled" else 100
    return {
        "spec": {"method": method, "head": head, "lse_temperatures": [1.0, 2.0, 4.0]},
        "head_mass": {t: {"mean": m} for t, m in zip("124", mass, strict=True)} if head else {},
        "audit": audit or {},
    }


def test_topk_is_refused_with_numbers_where_its_head_is_light():
    assert check_temperature(certificate("topk"), "topk", 1.0) == []
    with pytest.raises(UserError, match=r"top 100 tokens hold 43\.5% .* at T = 2"):
        check_temperature(certificate("topk"), "topk", 2.0)
    with pytest.raises(UserError, match=r"hold 4\.4% .*head_tail"):
        check_temperature(certificate("topk"), None, 4.0)
    with pytest.warns(UserWarning, match=r"hold 80\.0%"):
        assert len(check_temperature(certificate("topk", (0.8, 0.6, 0.1)), "topk", 1.0)) == 1


def test_mass_between_and_beyond_the_certified_temperatures():
    c = certificate("topk")
    assert head_mass_at(c, 1.5) == pytest.approx(0.435 + (0.965 - 0.435) * (1 / 1.5 - 0.5) / 0.5)
    assert head_mass_at(c, 0.5) == 0.965 and head_mass_at(c, 9) == 0.044
    assert head_mass_at(certificate("sampled"), 1) is None


def test_sampled_and_head_tail_warn():
    with pytest.warns(UserWarning, match=r"gradient cosine 0\.850, norm ratio 12\.60"):
        check_temperature(
            certificate("sampled", audit={"4": {"gradient_cosine": 0.85, "norm_ratio": 12.6}}), "sampled", 4.0
        )
    assert check_temperature(certificate("sampled"), "sampled", 1.0) == []
    assert check_temperature(certificate("head_tail"), "head_tail", 4.0) == []
    with pytest.warns(UserWarning, match=r"T = 8 lies outside the cached temperatures 1 to 4"):
        check_temperature(certificate("head_tail"), "head_tail", 8.0)
    with pytest.warns(UserWarning, match=r"raise logits\.tail"):
        poor = {"4": {"gradient_cosine": 0.9, "norm_ratio": 1.1}}
        check_temperature(certificate("head_tail", audit=poor), "head_tail", 4.0)
    with pytest.raises(UserError, match="above 0"):
        check_temperature(certificate("head_tail"), "head_tail", 0)


def test_vocabulary():
    check_vocabulary("a" * 64, 100, "a" * 64, 100)
    check_vocabulary("a" * 64, 100, "a" * 64, 128)  # a padded output layer
    check_vocabulary(None, 100, None, 100)
    with pytest.raises(UserError, match=r"tokenizer of small .* is not the teacher's"):
        check_vocabulary("a" * 64, 100, "b" * 64, 100, "small")
    for student in (90, 128):
        with pytest.raises(UserError, match=f"{student} output tokens, the teacher's cache 100"):
            check_vocabulary(None, 100, None, student)


def test_hashes_tell_models_and_tokenizers_apart():
    a, b = ({"source": "random", "vocabulary": 384, "seed": s} for s in (0, 1))
    bigger = {"source": "random", "vocabulary": 400, "seed": 0}
    assert weights_hash(load_model(a, {}, "float32")) == weights_hash(load_model(a, {}, "float32"))
    assert weights_hash(load_model(a, {}, "float32")) != weights_hash(load_model(b, {}, "float32"))
    assert tokenizer_hash(load_tokenizer(a, {})) == tokenizer_hash(load_tokenizer(b, {}))
    assert tokenizer_hash(load_tokenizer(a, {})) != tokenizer_hash(load_tokenizer(bigger, {}))
    tokenizer = load_tokenizer(a, {})
    before = template_hash(tokenizer)
    tokenizer.chat_template += " "
    assert template_hash(tokenizer) != before
