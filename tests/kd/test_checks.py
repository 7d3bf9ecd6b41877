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


def test_tokenizers_that_cut_texts_otherwise_are_others_though_their_vocabularies_agree():
    """Merges decide which of the same tokens a text becomes. Records of earlier releases know of none."""
    import json

    from tokenizers import Tokenizer

    from distill_energy.models.fingerprint import same_tokenizer

    def with_merges(merges):
        tokenizer = load_tokenizer({"source": "random", "vocabulary": 384}, {})
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        vocabulary = core["model"]["vocab"]
        for number, word in enumerate(("ab", "bc", "abc")):
            vocabulary[word] = vocabulary.pop(f"<|unused{number}|>")
        core["model"]["merges"] = merges
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(core))
        return tokenizer

    one = with_merges([["a", "b"], ["ab", "c"]])
    other = with_merges([["b", "c"], ["a", "bc"]])
    assert one.encode("abcab") != other.encode("abcab") or one.encode("ab") != other.encode("ab")
    first, second = tokenizer_hash(one), tokenizer_hash(other)
    assert first.partition("-")[0] == second.partition("-")[0] and not same_tokenizer(first, second)
    assert same_tokenizer(first, tokenizer_hash(with_merges([["a", "b"], ["ab", "c"]])))
    earlier = first.partition("-")[0]
    assert same_tokenizer(earlier, first) and same_tokenizer(second, earlier)
    with pytest.raises(UserError, match="is not the teacher's"):
        check_vocabulary(first, 384, second, 384)


def test_rows_beyond_the_tokenizer_may_differ():
    """One tokenizer, output layers padded to other sizes: the commonest pair of one family."""
    check_vocabulary("a", 152_064, "a", 151_936, tokens=151_665)
    check_vocabulary("a", 151_936, "a", 152_064, tokens=151_665)
    with pytest.raises(UserError, match=r"151,936 output tokens, the teacher's cache 152,064, their tokenizer 152,000"):
        check_vocabulary("a", 152_064, "a", 151_936, tokens=152_000)
    with pytest.raises(UserError, match="vocabulary mismatch"):
        check_vocabulary(None, 152_064, "a", 151_936, tokens=151_665)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_the_teacher_gives_rows_that_the_student_lacks_is_left_out_and_the_rest_scaled(temperature):
    """As if the teacher's soft-max had never held them."""
    import numpy as np
    import torch

    from distill_energy.kd.cache import CacheSpec, encode_rows, pack, unpack
    from distill_energy.kd.losses.teacher import collate_teacher

    spec = CacheSpec(method="topk", vocab_size=70, head=40, value_bits=16, value_step=1 / 1024)
    logits = torch.randn(6, 70, generator=torch.Generator().manual_seed(0)) * 2
    rows = unpack(pack(encode_rows(logits, spec, np.zeros(6)), spec), spec)
    teacher = collate_teacher([rows], vocabulary=64)
    weights, logp, log_tail = teacher.weights(temperature)
    cut = torch.log_softmax(logits[:, :64] / temperature, -1)
    kept = weights > 0
    assert teacher.ids.max() < 64 and (~kept).any()
    expected = cut.gather(1, teacher.ids)
    assert torch.allclose(logp[kept], expected[kept], atol=2e-2)  # what lies in the tail is not known id by id
    assert torch.allclose(weights[kept], expected.exp()[kept], atol=5e-3)
    tail = 1 - torch.where(kept, expected.exp(), 0.0).sum(1)
    beyond_in_tail = torch.softmax(logits / temperature, -1)[:, 64:].sum(1) / torch.softmax(logits / temperature, -1)[
        :, :64
    ].sum(1)
    assert ((log_tail.exp() - tail).abs() <= beyond_in_tail + 5e-3).all()
