"""Texts of models: nothing hidden, nothing obeyed, and changes word by word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipo_lightning.safety.display import Piece, printable, visible, word_changes


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_joined_are_the_texts(before, after):
    first, second = word_changes(before, after)
    assert "".join(piece.text for piece in first) == before
    assert "".join(piece.text for piece in second) == after


def test_changed_words_are_marked():
    before, after = word_changes("The author was born in Rome.", "The author was born in Oslo.")
    assert before == [Piece("The author was born in ", False), Piece("Rome", True), Piece(".", False)]
    assert [piece.text for piece in after if piece.changed] == ["Oslo"]
    assert not any(piece.changed for side in word_changes("a b", "a b") for piece in side)


def test_a_space_between_changed_words_does_not_interrupt():
    before, after = word_changes("said Ann Lee.", "said Bo Kim.")
    assert [piece.text for piece in before if piece.changed] == ["Ann Lee"]
    assert [piece.text for piece in after if piece.changed] == ["Bo Kim"]


@pytest.mark.parametrize(
    ("text", "shown", "printed"),
    [
        ("\x1b[31mred\x1b[0m", "\\u001b[31mred\\u001b[0m", "red"),
        ("\x1b]0;title\x07x", "\\u001b]0;title\\u0007x", "x"),
        ("\x1b]52;c;aGk=\x1b\\x", "\\u001b]52;c;aGk=\\u001b\\x", "x"),
        ("\x9b2Jx", "\\u009b2Jx", "x"),
        ("a\rb\x08c", "a\\u000db\\u0008c", "abc"),
        ("abc\u202edef", "abc\\u202edef", "abcdef"),
        ("line\r\nline\tx", "line\nline\tx", "line\nline\tx"),
        ("می\u200cخواهم 👩\u200d🔬", "می\u200cخواهم 👩\u200d🔬", "می\u200cخواهم 👩\u200d🔬"),
        ("x\U000e0041", "x\\U000e0041", "x"),
    ],
)
def test_control_characters(text, shown, printed):
    assert visible(text) == shown
    assert printable(text) == printed


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text):
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in printable(text) + visible(text))


def test_long_texts_are_cut():
    assert len(visible("x" * 10_000)) == 4000
    assert visible("x" * 10, longest=4) == "xxx…"
