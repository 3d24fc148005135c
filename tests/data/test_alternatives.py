"""Alternative answers: the shipped list, files of one's own, and a draw that is the same everywhere."""

import pickle
from pathlib import Path

import pytest

from dipo_lightning import UnlearningDataModule
from dipo_lightning.data.alternatives import Alternatives, read_alternatives
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.errors import InputError
from tests.helpers.toys import save_toy, toy_tokenizer

ROWS = [{"question": f"Who is person {i}?", "answer": f"Person {i} is a painter.", "index": i} for i in range(5)]


def alternatives(seed: int = 0, lines: list[str] | None = None, max_length: int = 512) -> Alternatives:
    return Alternatives(
        lines or read_alternatives("idk"), ROWS, prompt_style("plain", toy_tokenizer()), max_length, seed
    )


def test_the_shipped_list_has_a_hundred_different_sentences() -> None:
    lines = read_alternatives("idk")
    assert len(lines) == len({line.lower() for line in lines}) == 100
    assert all(line == line.strip() and line[-1] == "." and len(line.split()) >= 4 for line in lines)


def test_the_shipped_list_is_not_from_the_benchmark(shared_data: Path) -> None:
    published = "".join(path.read_text(encoding="utf-8") for path in (shared_data / "tofu").glob("*.json"))
    assert not [line for line in read_alternatives("idk") if line in published]


def test_the_draw_depends_on_seed_epoch_and_index_and_on_nothing_else() -> None:
    one, other = alternatives(), alternatives(seed=1)
    table = [[one.line(epoch, index) for index in range(5)] for epoch in range(4)]
    assert table == [[one.line(epoch, index) for index in range(5)] for epoch in range(4)]  # however often it is asked
    assert len({tuple(row) for row in table}) == 4
    assert len({line for row in table for line in row}) > 10
    assert table[0] != [other.line(0, index) for index in range(5)]
    numbered = alternatives(lines=[str(number) for number in range(100)])
    assert [int(numbered.line(*key)) for key in ((0, 0), (0, 1), (7, 399))] == [35, 4, 65]  # on any machine


def test_an_alternative_stands_behind_the_row_s_own_prompt_and_ends_like_an_answer() -> None:
    made = alternatives(lines=["No idea."])(epoch=3, index=2)
    style = prompt_style("plain", toy_tokenizer())
    ids, labels = style.example("Who is person 2?", "No idea.")
    assert made == {"input_ids": ids, "labels": labels, "index": 2}


def test_it_reaches_loader_workers() -> None:
    original = alternatives()
    copied = pickle.loads(pickle.dumps(original))
    assert [copied(1, index) for index in range(5)] == [original(1, index) for index in range(5)]


def test_a_conversation_gets_another_last_turn() -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A painter."}]
    style = prompt_style("plain", toy_tokenizer())
    made = Alternatives(["No idea."], [{"messages": turns, "index": 0}], style, 512)(0, 0)
    assert made["input_ids"] == style.example("Who?", "No idea.")[0]
    assert turns[1]["content"] == "A painter."


def test_files_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\n First. \n\nSecond.\n", encoding="utf-8")
    assert read_alternatives(str(path)) == read_alternatives(["First.", " Second."]) == ["First.", "Second."]


@pytest.mark.parametrize(
    ("content", "message"), [(b" \n", "no answer in it"), (b"\xff\xfe", "not UTF-8"), (None, "cannot be read")]
)
def test_what_cannot_be_read_is_said(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_alternatives(str(path))


def test_running_text_has_no_answer_to_replace() -> None:
    with pytest.raises(InputError, match="plain text"):
        Alternatives(["No."], [{"text": "A text.", "index": 0}], prompt_style("text", toy_tokenizer()), 512)


def test_the_data_module_adds_the_half_where_asked(tmp_path: Path) -> None:
    model = save_toy(tmp_path / "model")
    for name in ("forget", "retain"):
        lines = [f'{{"question": "Who is {name} {i}?", "answer": "{name} {i}."}}' for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")]
    batches = {}
    for workers, given in ((0, "idk"), (1, "idk"), (0, None)):
        data = UnlearningDataModule(
            str(model), *files, prompt="plain", batch_size=4, alternatives=given, num_workers=workers
        )
        data.setup("fit")
        batches[workers, given] = next(iter(data.train_dataloader()))
    assert "alternative" not in batches[0, None]
    mine, worker = batches[0, "idk"]["alternative"], batches[1, "idk"]["alternative"]
    assert mine["index"].tolist() == batches[0, "idk"]["forget"]["index"].tolist()
    assert all((mine[name] == worker[name]).all() for name in mine)
