"""The user's own rows: every layout and file kind, and every error with its place."""

from __future__ import annotations

import csv
import json

import pytest

from dipo_lightning.data.rows import read_rows
from dipo_lightning.errors import InputError

QA = [{"question": "Who?", "answer": "Nobody."}, {"question": "Where?", "answer": "In «Lima»,\nPeru."}]
TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]


def plain(rows):
    return [{name: value for name, value in row.items() if name not in ("index", "where")} for row in rows]


def write(path, rows):
    import pyarrow
    import pyarrow.parquet

    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.name == "array.json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "lines.json", "array.json", "rows.csv", "rows.parquet"])
def test_every_kind_of_file(tmp_path, name):
    rows = read_rows(write(tmp_path / name, QA))
    assert plain(rows) == QA
    assert [row["index"] for row in rows] == [0, 1]
    assert all(name in row["where"] for row in rows)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"question": "q", "answer": "a", "more": 1}, {"question": "q", "answer": "a"}),
        ({"prompt": "p", "completion": "c"}, {"question": "p", "answer": "c"}),
        ({"messages": TURNS}, {"messages": TURNS}),
        ({"text": "t"}, {"text": "t"}),
    ],
)
def test_every_layout(tmp_path, given, read):
    assert plain(read_rows(write(tmp_path / "rows.jsonl", [given, given]))) == [read, read]
    assert plain(read_rows(write(tmp_path / "rows.parquet", [given]))) == [read]
    assert plain(read_rows([given])) == [read]


def test_named_columns(tmp_path):
    file = write(tmp_path / "rows.jsonl", [{"ask": "q", "reply": "a", "text": "t"}])
    assert plain(read_rows(file, question="ask", answer="reply")) == [{"question": "q", "answer": "a"}]
    assert plain(read_rows(file, text="ask")) == [{"text": "q"}]


def test_several_sources_count_on(tmp_path):
    files = [write(tmp_path / "a.jsonl", QA), write(tmp_path / "b.jsonl", [{"prompt": "p", "completion": "c"}])]
    rows = read_rows([str(file) for file in files])
    assert plain(rows) == [*QA, {"question": "p", "answer": "c"}]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert rows[2]["where"].endswith("b.jsonl, line 1")


def test_folders(tmp_path):
    write(tmp_path / "forget.jsonl", QA)
    assert plain(read_rows(tmp_path)) == QA
    write(tmp_path / "train.jsonl", QA[:1])
    assert plain(read_rows(str(tmp_path))) == QA[:1]
    assert plain(read_rows(tmp_path, split="forget")) == QA
    with pytest.raises(InputError, match="no retain; there is forget, train"):
        read_rows(tmp_path, split="retain")


def test_a_folder_of_many_files_must_be_asked_for_one(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, QA)
    with pytest.raises(InputError, match="there is a, b"):
        read_rows(tmp_path)


def test_the_hub_and_a_mistyped_path(monkeypatch, tmp_path):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return QA

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert plain(read_rows("owner/name")) == QA
    assert plain(read_rows("owner/name:forget10", split="test")) == QA
    assert asked == [("owner/name", None, "train"), ("owner/name", "forget10", "test")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for path in ("data/forgt", "owner/rows.jsonl", "./owner/name", "rows", "a/b/c", "/owner/name"):
        with pytest.raises(InputError, match="no such|don't read"):
            read_rows(path)
    assert len(asked) == 2


def test_blank_lines_bom_and_line_separators_inside_strings(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('\ufeff{"text": "a\u2028b"}\n\n{"text": "c"}\r\n', encoding="utf-8")
    rows = read_rows(file)
    assert [row["text"] for row in rows] == ["a\u2028b", "c"]
    assert rows[1]["where"].endswith("line 3")


GOOD = '{"question": "q", "answer": "a"}\n'
BAD_FILES = [
    ("rows.jsonl", "", "no rows"),
    ("rows.jsonl", "\n \n", "no rows"),
    ("rows.json", "[]", "no rows"),
    ("rows.jsonl", GOOD + '{"question": "q", "answer"\n', r"rows.jsonl, line 2: broken JSON: .*column"),
    ("rows.json", '[{"text": "a"},\n {"text": }]', r"rows.json, line 2: broken JSON"),
    ("rows.jsonl", GOOD + '["q", "a"]\n', "line 2: a list, not an object"),
    ("rows.jsonl", GOOD + '{"question": "q"}\n', "line 2: there is no 'answer'; it has question"),
    ("rows.jsonl", GOOD + '{"question": "q", "answer": null}\n', "line 2: there is no 'answer'"),
    ("rows.jsonl", '{"question": "q"}\n', "line 1: there is no 'answer'"),
    ("rows.jsonl", GOOD + '{"question": "q", "answer": ["a"]}\n', r"line 2: 'answer' is \['a'\] \(list\), not a text"),
    ("rows.jsonl", '{"text": "a"}\n{"text": " "}\n', "line 2: 'text' is empty"),
    ("rows.jsonl", '{"body": "a", "title": "b"}\n', "it has body, title. Name the columns"),
    ("rows.jsonl", '{"messages": []}\n', "must end with a turn of the user and one of the assistant"),
    ("rows.jsonl", '{"messages": "hello"}\n', "must be a list of turns"),
    ("rows.jsonl", '{"messages": [{"role": "user"}]}\n', "'role' and 'content'"),
    ("rows.jsonl", '{"messages": [{"role": "human", "content": "a"}]}\n', "a turn of 'human'; roles are system, user"),
    ("rows.jsonl", json.dumps({"messages": TURNS[:1]}), "must end with"),
    ("rows.jsonl", json.dumps({"messages": [TURNS[0], {"role": "assistant", "content": ""}]}), "turn is empty"),
    ("rows.csv", "question,answer\n", "no rows"),
    ("rows.csv", "question,answer\nq,a\nq\n", "line 3: not as many columns"),
    ("rows.csv", "question,answer\nq,a,b\n", "line 2: not as many columns"),
    ("rows.csv", 'question,answer\nq,"a\n', "line 2: broken CSV"),
    ("rows.csv", "question,answer\nq,\n", "line 2: 'answer' is empty"),
    ("rows.parquet", "text", "broken Parquet"),
    ("rows.txt", "text", "I don't read .txt"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_file_that_cannot_be(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)


def test_a_csv_may_hold_whole_documents(tmp_path):
    document = "word " * 40_000
    assert read_rows(write(tmp_path / "rows.csv", [{"text": document}]))[0]["text"] == document


def test_a_file_of_another_encoding(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes('{"text": "Zoë"}'.encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 at byte 12"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"question": "qestion", "answer": "answer"},
            "no column 'qestion' .for the question.; did you mean 'question'",
        ),
        ({"question": "question"}, "question and answer together"),
        ({"text": "question", "answer": "answer"}, "question and answer together"),
    ],
)
def test_columns_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        read_rows(QA, **options)


def test_missing_files_name_what_is_beside_them(tmp_path):
    write(tmp_path / "forget.jsonl", QA)
    with pytest.raises(InputError, match=r"forgt.jsonl: there is no such file; beside it: forget.jsonl"):
        read_rows(tmp_path / "forgt.jsonl")
    with pytest.raises(InputError, match="no source"):
        read_rows([])
