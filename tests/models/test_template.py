"""Dates in templates are frozen, and what a template is told is found by asking it."""

import copy
import datetime as dt

import pytest

from distill_energy.errors import UserError
from distill_energy.models.template import FROZEN, freeze, freeze_date, original_template
from distill_energy.models.tiny import CHAT_TEMPLATE, tiny_tokenizer

DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHAT_TEMPLATE


def test_a_date_is_frozen_and_the_template_as_it_came_is_kept():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = DATED
    freeze(tokenizer)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert text.startswith("Today: 26 Jul 2024\n") and dt.date(2024, 7, 26) == FROZEN
    assert original_template(tokenizer) == DATED
    before = tokenizer.chat_template
    freeze(tokenizer)
    assert tokenizer.chat_template == before


def test_a_template_without_a_date_is_left_alone():
    tokenizer = tiny_tokenizer()
    freeze(tokenizer)
    assert tokenizer.chat_template == original_template(tokenizer) == CHAT_TEMPLATE


def test_a_date_that_cannot_be_frozen_is_refused():
    with pytest.raises(UserError, match="date cannot be frozen"):
        freeze_date("{{ strftime_now(form) }}")
