"""Labels stand on every assistant turn, and only there."""

import pytest

from distill_energy.data.chat import accepted, check_tokenizer, encode, encode_turns, segments
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
    with pytest.raises(UserError, match="does not follow its generation prompt"):
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


def test_check_tokenizer_accepts_bytes_and_refuses_a_changed_text(tokenizer):
    import copy

    from tokenizers.normalizers import Lowercase

    check_tokenizer(tokenizer)
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(UserError, match="decode"):
        check_tokenizer(other)


# What Qwen3's template does: an answer to the last question gets a think block, earlier ones lose theirs, and told not
# to think, the generation prompt supplies an empty block.
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# Phi-3: a token after the last turn alone. GLM-4: nothing ends an answer but the next turn's first token.
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|unused0|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GLM = (
    "{% for m in messages %}{{ ('<|im_start|>' if m.role == 'user' else '<|assistant|>') + '\n' + m.content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SILENT_SYSTEM = (
    NO_SYSTEM.replace("{{ raise_exception('System role not supported') }}", "")
    .replace("{{ '<' + m.role", "{% if m.role != 'system' %}{{ '<' + m.role")
    .replace("'<|im_end|>\n' }}{% endfor %}", "'<|im_end|>\n' }}{% endif %}{% endfor %}")
)


def with_template(tokenizer, template):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_what_the_generation_prompt_supplies_is_not_labelled(tokenizer):
    qwen = with_template(tokenizer, QWEN3)
    encoded = encode(qwen, turns("Two?", "2"))
    assert labelled(qwen, encoded) == ["2<|im_end|>"]
    assert qwen.decode(encoded.prompt_ids).endswith("<think>\n\n</think>\n\n")


def test_thoughts_are_labels_where_the_data_has_them(tokenizer):
    qwen = with_template(tokenizer, QWEN3)
    messages = turns("Two?", "2")
    messages[1]["reasoning_content"] = "one and one"
    assert labelled(qwen, encode(qwen, messages)) == ["<think>\none and one\n</think>\n\n2<|im_end|>"]
    with pytest.raises(UserError, match="reasoning_content"):
        encode(tokenizer, messages)


@pytest.mark.parametrize("template", [QWEN3, PHI3])
def test_a_template_that_rewrites_history_gives_an_example_a_turn(tokenizer, template):
    other = with_template(tokenizer, template)
    found = encode_turns(other, turns("a", "first", "b", "second"))
    assert len(found) == 2
    for encoded, answer in zip(found, ("first", "second"), strict=True):
        (label,) = labelled(other, encoded)
        assert label.startswith(answer) and label.endswith("<|im_end|>")
        assert encoded.input_ids[: len(encoded.prompt_ids)] == encoded.prompt_ids
        assert sum(encoded.loss_mask) == len(encoded.input_ids) - len(encoded.prompt_ids)
    assert "first" in other.decode(found[1].prompt_ids)


def test_a_label_ends_at_the_first_token_that_stops_generation(tokenizer):
    phi = with_template(tokenizer, PHI3)
    stop = phi.convert_tokens_to_ids("<|unused0|>")
    phi.add_special_tokens({"additional_special_tokens": ["<|unused0|>"]})
    assert labelled(phi, encode(phi, turns("a", "x"), stops=[stop, 2])) == ["x<|unused0|>"]
    # an answer that quotes the token does not end at the quotation
    assert labelled(phi, encode(phi, turns("a", "say <|unused0|> so"), stops=[stop])) == [
        "say <|unused0|> so<|unused0|>"
    ]


def test_where_the_next_turn_ends_an_answer_the_label_ends_with_its_first_token(tokenizer):
    glm = with_template(tokenizer, GLM)
    start = glm.convert_tokens_to_ids("<|im_start|>")
    encoded = encode(glm, turns("a", "x", "b", "y"), stops=[start])
    assert labelled(glm, encoded) == ["x<|im_start|>", "y<|im_start|>"]
    assert glm.decode(encoded.input_ids) == "<|im_start|>\na<|assistant|>\nx<|im_start|>\nb<|assistant|>\ny<|im_start|>"
    with pytest.raises(UserError, match="ends with no token that ends generation"):
        encode(glm, turns("a", "x"))


@pytest.mark.parametrize("template", [NO_SYSTEM, SILENT_SYSTEM])
def test_a_system_text_is_merged_where_the_template_has_no_such_role(tokenizer, template):
    other = with_template(tokenizer, template)
    messages, merged = accepted(other, [{"role": "system", "content": "Be brief."}, *turns("a", "x")])
    assert merged and messages[0] == {"role": "user", "content": "Be brief.\n\na"}
    assert "Be brief." in other.decode(encode(other, messages).prompt_ids)
    assert accepted(tokenizer, [{"role": "system", "content": "Be brief."}, *turns("a", "x")])[1] is False


def test_a_turn_of_weight_0_is_read_and_not_labelled(tokenizer):
    messages = turns("a", "first", "b", "second")
    messages[1]["weight"] = 0
    assert labelled(tokenizer, encode(tokenizer, messages)) == ["second<|im_end|>"]
