"""Alternative answers: the shipped list, files of one's own, and a draw that is the same everywhere."""

import json
import pickle
from pathlib import Path

import pytest

from dipo_lightning import UnlearningDataModule
from dipo_lightning.data.alternatives import Alternatives, read_alternatives, written_alternatives
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.errors import InputError
from tests.helpers.toys import save_toy, toy_tokenizer

ROWS = [{"question": f"Who is person {i}?", "answer": f"Person {i} is a painter.", "index": i} for i in range(5)]


def alternatives(seed: int = 0, lines: list[str] | None = None, max_length: int = 512) -> Alternatives:
    read = read_alternatives(lines or "idk", ROWS)
    return Alternatives(read, ROWS, prompt_style("plain", toy_tokenizer()), max_length, seed)


def shared(source: str | Path | list[str]) -> list[str]:
    """The alternatives that all rows share."""
    read = read_alternatives(source, ROWS)
    assert len(read) == len(ROWS)
    assert all(lines is read[0] for lines in read)
    return list(read[0])


def data_file(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_shipped_list_has_a_hundred_different_sentences() -> None:
    lines = shared("idk")
    assert len(lines) == len({line.lower() for line in lines}) == 100
    assert all(line == line.strip() and line[-1] == "." and len(line.split()) >= 4 for line in lines)


def test_the_shipped_list_is_not_from_the_benchmark(shared_data: Path) -> None:
    published = "".join(path.read_text(encoding="utf-8") for path in (shared_data / "tofu").glob("*.json"))
    assert not [line for line in shared("idk") if line in published]


def test_the_draw_depends_on_seed_epoch_and_index_and_on_nothing_else() -> None:
    one, other = alternatives(), alternatives(seed=1)
    table = [[one.line(epoch, index) for index in range(5)] for epoch in range(4)]
    assert table == [[one.line(epoch, index) for index in range(5)] for epoch in range(4)]  # however often it is asked
    assert len({tuple(row) for row in table}) == 4
    assert len({line for row in table for line in row}) > 10
    assert table[0] != [other.line(0, index) for index in range(5)]
    numbered = Alternatives([[str(number) for number in range(100)]] * 400, ROWS, one.style, 512)
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
    made = Alternatives([["No idea."]], [{"messages": turns, "index": 0}], style, 512)(0, 0)
    assert made["input_ids"] == style.example("Who?", "No idea.")[0]
    assert turns[1]["content"] == "A painter."


def test_files_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\n First. \n\nSecond.\n", encoding="utf-8")
    assert shared(str(path)) == shared(path) == shared(["First.", " Second."]) == ["First.", "Second."]


@pytest.mark.parametrize(
    ("content", "message"), [(b" \n", "no answer in it"), (b"\xff\xfe", "not UTF-8"), (None, "cannot be read")]
)
def test_what_cannot_be_read_is_said(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_alternatives(str(path), ROWS)


def test_running_text_has_no_answer_to_replace() -> None:
    with pytest.raises(InputError, match="plain text"):
        read_alternatives("idk", [{"text": "A text.", "index": 0}])


def test_alternatives_of_each_row_from_a_data_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[dict[str, object]] = [
        {"question": f" who is  person {i}?", "answer": "Another one.", "alternatives": ["A cook.", f"Cook {i}."]}
        for i in (4, 3, 2, 1, 0)
    ]
    rows[0] |= {"alternatives": "A nurse."}
    path = data_file(tmp_path / "mine.jsonl", [*rows, {"question": "Who else?", "alternatives": ["X."]}])
    expected = [["A cook.", f"Cook {i}."] for i in range(4)] + [["A nurse."]]
    assert read_alternatives(path, ROWS) == expected
    assert "1 of its records have a question that no forget row has" in caplog.text
    assert "mine.jsonl, line 6" in caplog.text
    own = [row | {"alternatives": lines} for row, lines in zip(ROWS, expected, strict=True)]
    assert read_alternatives("rows", own) == expected
    (tmp_path / "written.jsonl").write_text(written_alternatives(ROWS, expected), encoding="utf-8")
    assert read_alternatives(str(tmp_path / "written.jsonl"), ROWS) == expected
    table = "question;alternatives\n" + "".join(
        f'Who is person {i}?;"[""A cook."", ""Cook {i}.""]"\n' for i in range(5)
    )
    (tmp_path / "table.csv").write_text(table, encoding="utf-8")
    assert read_alternatives(str(tmp_path / "table.csv"), ROWS)[4] == ["A cook.", "Cook 4."]


def test_a_cell_with_nan_has_no_alternative(tmp_path: Path) -> None:
    written = [{"question": row["question"], "alternatives": float("nan")} for row in ROWS]
    with pytest.raises(InputError, match="has no alternative for 5 of 5 forget rows"):
        read_alternatives(data_file(tmp_path / "own.jsonl", written), ROWS)


def test_a_file_of_open_unlearning_has_one_alternative_in_each_row(tmp_path: Path) -> None:
    rows = [row | {"alternate": f"{row['question']} {number}"} for number in range(3) for row in ROWS]
    found = read_alternatives(data_file(tmp_path / "alt5_seed_0.json", rows), ROWS)
    assert found[2] == [f"Who is person 2? {number}" for number in range(3)]


def test_a_question_with_two_answers_has_alternatives_for_each(tmp_path: Path) -> None:
    twice = [{"question": "Who?", "answer": answer, "index": i} for i, answer in enumerate(("Ada.", "Bo."))]
    rows = [{"question": "Who?", "answer": answer, "alternatives": [f"Not {answer}"]} for answer in ("Bo.", "Ada.")]
    assert read_alternatives(data_file(tmp_path / "a.jsonl", rows), twice) == [["Not Ada."], ["Not Bo."]]
    talks = [
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": row["answer"]}]}
        for row in twice
    ]
    (tmp_path / "b.jsonl").write_text(written_alternatives(talks, [["X."], ["Y."]]), encoding="utf-8")
    assert read_alternatives(str(tmp_path / "b.jsonl"), talks) == [["X."], ["Y."]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "Who is person 0?", "alternatives": ["X."]}], r"no alternative for 4 of 5.*'Who is person 1\?'"),
        (
            [{"question": "Who is person 0?"}],
            r"^data\.alternatives: .*line 1: there is no 'alternatives'; it has question",
        ),
        ([{"question": "Who is person 0?", "alternatives": ["X.", " "]}], "line 1: 'alternatives' is empty"),
        ([{"alternatives": ["X."]}], "line 1: 'question' is None"),
        (
            [{"question": "Who is person 0?", "alternatives": ["X.", ROWS[0]["answer"].upper()]}],
            r"mine\.jsonl: an alternative for 'Who is person 0\?' is the answer that is to be forgotten",
        ),
    ],
)
def test_a_data_file_that_is_not_right_is_said(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_alternatives(data_file(tmp_path / "mine.jsonl", rows), ROWS)
    with pytest.raises(InputError, match=r"^data\.alternatives: .*absent\.jsonl: there is no such file"):
        read_alternatives(str(tmp_path / "absent.jsonl"), ROWS)


def test_the_rows_own_column_is_read_and_missing_ones_are_said(tmp_path: Path) -> None:
    model = save_toy(tmp_path / "model")
    rows: list[dict[str, object]] = [
        {"question": f"Who {i}?", "answer": "Ada.", "alternatives": f"Bo {i}."} for i in range(3)
    ]
    retain = data_file(tmp_path / "retain.jsonl", [{"question": "Where?", "answer": "There."}])
    options = {"prompt": "plain", "batch_size": 3, "alternatives": "rows", "retain": retain}
    data = UnlearningDataModule(str(model), data_file(tmp_path / "forget.jsonl", rows), **options)  # type: ignore[arg-type]
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    texts = [data.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["alternative"]["input_ids"]]
    numbers = batch["alternative"]["index"].tolist()
    assert texts == [f"Question: Who {i}?\nAnswer: Bo {i}." for i in numbers]
    del rows[1]["alternatives"]
    data = UnlearningDataModule(str(model), data_file(tmp_path / "forget.jsonl", rows), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"own column 'alternatives' has no alternative for 1 of 3.*line 2: 'Who 1\?'"):
        data.setup("fit")


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
