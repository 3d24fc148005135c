"""Both models side by side, line by line, and nothing of theirs that a terminal would obey."""

import io

import pytest

from dipo_lightning.cli.chat import Speaker, side_by_side, talk
from dipo_lightning.cli.main import main
from dipo_lightning.errors import InputError
from tests.helpers.toys import save_toy


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("chat")
    return [str(save_toy(root / name, seed=seed)) for seed, name in enumerate(("original", "unlearned"))]


def test_the_command_reads_lines_until_they_end(folders, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Who wrote it?\n\n/new\n/nonsense\nWhere?\n"))
    assert main(["chat", *folders, "--prompt", "chat", "--max_new_tokens", "4"]) == 0
    said = capsys.readouterr().out
    assert said.count("original") == 2, "two questions; an empty line and commands ask nobody"
    assert said.index("original") < said.index("unlearned") < said.index("A new conversation.")
    assert "There is no /nonsense." in said


def test_quit_ends(folders):
    lines, output = io.StringIO("/quit\nWho?\n"), io.StringIO()
    talk([], lines, output, 80)
    assert lines.readline() == "Who?\n"


def test_a_line_that_is_no_text_is_refused_and_the_conversation_goes_on(folders, monkeypatch, capsys):
    lines = io.TextIOWrapper(io.BytesIO(b"h\xff\nWho?\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", lines)
    assert main(["chat", *folders, "--max_new_tokens", "4"]) == 0
    said = capsys.readouterr().out
    assert "error: The question 'h\\udcff' has half a surrogate pair" in said
    assert said.count("original") == 1, "the second line is answered"


def test_each_model_remembers_its_own_side(folders):
    one, other = (Speaker("x", folder, "chat", 3) for folder in folders)
    alone = one.answer("Where?")
    one.turns.clear()
    one.answer("Who wrote it?")
    one.answer("Where?")
    assert [turn["role"] for turn in one.turns] == ["user", "assistant"] * 2
    assert other.turns == []
    one.turns.clear()
    assert one.answer("Where?") == alone, "a new conversation begins as the first did"


def test_a_full_context_leaves_the_oldest_questions_out_and_says_so(tmp_path):
    speaker = Speaker("x", str(save_toy(tmp_path / "model", "gpt2")), "chat", 200)
    first, *_, last = [speaker.answer(f"Who is the author of book {number}?") for number in range(5)]
    assert "left out" not in first
    assert "\n[The oldest questions (1) were left out: 512 tokens are full.]" in last
    assert last.partition("\n[The oldest")[0], "an answer"
    assert len(speaker.turns) < 10
    turns = speaker.turns
    with pytest.raises(InputError, match="x reads 512; ask a shorter one"):
        speaker.answer("Who? " * 512)
    assert speaker.turns is turns


def test_escape_sequences_of_a_model_never_reach_the_terminal(folders, monkeypatch):
    speaker = Speaker("x", folders[0], "plain", 3)
    monkeypatch.setattr(speaker.style.tokenizer, "decode", lambda ids, **kwargs: "a\x1b[2Jb\x1b]0;t\x07\x9bc\x7f")
    assert speaker.answer("Who?") == "ab"  # the last c ends the sequence that 0x9b begins
    output = io.StringIO()
    talk([speaker], io.StringIO("Who\x1b[2J?\n/\x1b[2Jx\n"), output, 80)
    assert not set("\x1b\x07\x9b\x7f") & set(output.getvalue())


def test_wrong_options_are_said(folders, capsys):
    assert main(["chat", *folders, "--max_new_tokens", "0"]) == 2
    assert "max_new_tokens is 0" in capsys.readouterr().err
    assert main(["chat", folders[0], "/nowhere/x"]) == 2
    assert "There is no model" in capsys.readouterr().err


def test_columns_and_narrow_terminals():
    answers = [("original", "one two three " * 5), ("unlearned", "x\ny")]
    lines = side_by_side(answers, 80).split("\n")
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split("|")[1].strip() == "unlearned"
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["x", "y"]
    narrow = side_by_side(answers, 40).split("\n")
    assert all(len(line) <= 40 for line in narrow)
    assert narrow.index("original:") < narrow.index("unlearned:")
    assert narrow[-2:] == ["x", "y"], "the line breaks of an answer stay"
