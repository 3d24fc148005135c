"""Rows that two sets share."""

from __future__ import annotations

import pytest

from dipo_lightning.data.rows import overlap, refuse_overlap
from dipo_lightning.errors import InputError


def test_case_and_white_space_do_not_hide_a_row():
    first = [{"question": "Who?", "answer": "A"}, {"question": "WHO \n is it", "answer": "b  c"}]
    second = [{"question": "x", "answer": "y"}, {"question": "who is it", "answer": "B c"}]
    assert overlap(first, second) == [(1, 1)]
    assert overlap(second, first) == [(1, 1)]


def test_the_same_question_with_another_answer_is_another_row():
    assert overlap([{"question": "Who?", "answer": "A"}], [{"question": "Who?", "answer": "B"}]) == []


def test_every_kind_of_row():
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A"}]
    assert overlap([{"text": "a b"}, {"messages": turns}], [{"messages": turns}, {"text": "A  B"}]) == [(0, 1), (1, 0)]


def test_the_message_names_both_places():
    first = [{"text": "a"}, {"text": "b", "where": "f.jsonl, line 2"}]
    with pytest.raises(InputError, match="1 of 2 forget rows are retain rows too.*f.jsonl, line 2 is retain row 1"):
        refuse_overlap(first, [{"text": "c"}, {"text": "b"}])
    refuse_overlap(first, [{"text": "c"}])
