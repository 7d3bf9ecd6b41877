"""Labels stand on every assistant turn, and only there."""

import pytest

from distill_energy.data.chat import check_tokenizer, encode, segments, usable
from distill_energy.errors import UserError

# OLMo-2's form: one token begins and ends everything, and a line break follows every answer but the last.
OLMO = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + m['content'] + eos_token + ('' if loop.last else '\n') }}"
    "{% else %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
# A template that drops earlier answers' content, as some reasoning models' do.
FORGETFUL = (
    "{% for m in messages %}{{ m['role'] + ':' + (m['content'] if loop.last else '') + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def turns(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def labelled(tokenizer, encoded):
    """The texts of the runs of labels."""
    runs, current = [], []
    for token, label in zip(encoded.input_ids, encoded.loss_mask, strict=True):
        if label:
            current.append(token)
        elif current:
            runs.append(tokenizer.decode(current))
            current = []
    return runs + ([tokenizer.decode(current)] if current else [])


def test_one_turn_labels_the_answer_and_its_end(tokenizer):
    encoded = encode(tokenizer, turns("Two?", "2"))
    text = "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoded.prompt_ids) == text
    assert tokenizer.decode(encoded.input_ids) == text + "2<|im_end|>"
    assert labelled(tokenizer, encoded) == ["2<|im_end|>"]
    assert encoded.input_ids[: len(encoded.prompt_ids)] == encoded.prompt_ids


def test_every_assistant_turn_is_labelled_and_no_user_turn(tokenizer):
    encoded = encode(tokenizer, turns("a", "first", "b", "second", "c", "third"))
    assert labelled(tokenizer, encoded) == ["first<|im_end|>", "second<|im_end|>", "third<|im_end|>"]


def test_a_user_turn_that_repeats_the_answer_is_not_labelled(tokenizer):
    encoded = encode(tokenizer, turns("yes", "yes", "yes", "yes"))
    assert labelled(tokenizer, encoded) == ["yes<|im_end|>"] * 2
    assert sum(encoded.loss_mask) == 2 * 4


def test_a_user_turn_after_the_last_answer_is_left_out(tokenizer):
    assert encode(tokenizer, turns("a", "x", "b")).input_ids == encode(tokenizer, turns("a", "x")).input_ids


def test_olmo_template(tokenizer):
    import copy

    olmo = copy.deepcopy(tokenizer)
    olmo.chat_template = OLMO
    encoded = encode(olmo, turns("a", "first", "b", "second"))
    assert labelled(olmo, encoded) == ["first<|im_end|>", "second<|im_end|>"]
    assert olmo.decode(encoded.input_ids).endswith("second<|im_end|>")


def test_a_template_that_rewrites_history_is_refused(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = FORGETFUL
    with pytest.raises(UserError, match="prefix"):
        segments(other, turns("a", "x", "b", "y"))


@pytest.mark.parametrize("length", [5, 40, 50, 60])
def test_truncation_keeps_a_prefix(tokenizer, length):
    whole = encode(tokenizer, turns("a", "first", "b", "second"))
    cut = encode(tokenizer, turns("a", "first", "b", "second"), length)
    if not any(whole.loss_mask[:length]):
        assert cut is None
        return
    assert cut.input_ids == whole.input_ids[:length]
    assert cut.loss_mask == whole.loss_mask[:length]
    assert cut.truncated == (len(whole.input_ids) > length)


def test_unicode_and_white_space_survive(tokenizer):
    answer = "  ¿Qué? 数\n\n"
    encoded = encode(tokenizer, turns("é", answer))
    assert labelled(tokenizer, encoded) == [answer + "<|im_end|>"]


def test_usable():
    assert usable(turns("a", "b"))
    assert not usable([])
    assert not usable(turns("a"))
    assert not usable(turns("a", " "))
    assert not usable([{"role": "assistant", "content": "b"}])
    assert not usable([{"role": "human", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert not usable([{"role": "user", "content": None}, {"role": "assistant", "content": "b"}])


def test_check_tokenizer_accepts_bytes_and_refuses_a_changed_text(tokenizer):
    import copy

    from tokenizers.normalizers import Lowercase

    check_tokenizer(tokenizer)
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(UserError, match="decode"):
        check_tokenizer(other)
