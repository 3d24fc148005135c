"""The user's rows: every layout and file kind, every error with its place, and rows that two sets share."""

from __future__ import annotations

import csv
import json
import math

import pytest

from dipo_lightning.data.mentions import says
from dipo_lightning.data.rows import Rows, data_fingerprint, overlap, private_values, read_rows, refuse_overlap
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


@pytest.mark.parametrize("given", ["NaN", "[]", "null", '""', '["Nobody."]', '"Nobody."'])
def test_a_paraphrased_answer_may_be_absent_or_a_list_of_one(tmp_path, given):
    (tmp_path / "rows.jsonl").write_text(GOOD[:-2] + f', "paraphrased_answer": {given}}}')
    expected = {"paraphrased_answer": "Nobody."} if "Nobody" in given else {}
    assert plain(read_rows(tmp_path / "rows.jsonl")) == [{"question": "q", "answer": "a"} | expected]


def test_named_optional_columns(tmp_path):
    rows = [QA[0], {**QA[1], "s": "Peru", "Other": "Where?"}]
    read = read_rows(write(tmp_path / "rows.jsonl", rows), private="s", paraphrased_question="Other")
    assert plain(read) == [QA[0], QA[1] | {"private": ["Peru"], "paraphrased_question": ["Where?"]}]
    assert plain(read_rows(QA, private="s", marks=False)) == QA


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
    with pytest.raises(InputError, match=r"there is a, b\. Give the path of one file\.$"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match=r"there is a, b\. Name a file, or set data\.split to the name of one\."):
        read_rows(tmp_path, option="data.split")


@pytest.mark.parametrize("place", [".", "data"])
@pytest.mark.parametrize(
    ("names", "split", "said"),
    [
        (["train-00001-of-00003.jsonl"], None, r"train has 1 of its 3 shards \(train-00001-of-00003.jsonl\)"),
        (["forget-00001-of-00003.csv", "x.csv"], "forget", "forget has 1 of its 3 shards"),
        (["train.jsonl", "train.csv"], None, r"several data sets called train \(train.csv, train.jsonl\)"),
        (["train.jsonl", "train-00000-of-00001.jsonl"], "train", "several data sets called train"),
    ],
)
def test_a_part_of_a_folder_s_rows_is_not_taken_for_all_of_them(tmp_path, names, split, said, place):
    (tmp_path / "data").mkdir()
    for name in names:
        write(tmp_path / place / name, QA)
    with pytest.raises(InputError, match=said):
        read_rows(tmp_path, split=split)


def test_one_data_set_in_two_files_of_a_folder_is_refused(tmp_path):
    for name in ("rows.jsonl", "rows.csv"):
        write(tmp_path / name, QA)
    with pytest.raises(InputError, match="several data sets called rows"):
        read_rows(tmp_path)


def test_a_split_of_a_file_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", QA)
    with pytest.raises(InputError, match=r"a file has no splits, so 'dev' counts for nothing; leave data\.x out"):
        read_rows(path, split="dev", option="data.x")


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
        with pytest.raises(InputError, match="no such|not supported"):
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
    (
        "rows.jsonl",
        '{"body": "a", "title": "b"}\n',
        "it has body, title. Name the columns so in the file; fit also takes",
    ),
    (
        "rows.jsonl",
        GOOD + '{"text": "a", "id": ' + "1" * 5000 + "}",
        "rows.jsonl, line 2: cannot be read: .*4300 digits",
    ),
    (
        "rows.jsonl",
        '{"text": "a", "id": ' + "[" * 200_000 + "]" * 200_000 + "}",
        "line 1: cannot be read: too many lists",
    ),
    ("rows.json", '[{"text": "a"},\n {"id":\n ' + "1" * 5000 + "}]", "the value that begins in line 2: cannot be read"),
    ("rows.csv", "question,answer,private\nq,a," + "[" * 200_000 + "]", "line 2: 'private' begins like a list"),
    ("rows.csv", "question,answer,private\nq,a,[" + "1" * 5000 + "]", "line 2: 'private' begins like a list"),
    ("rows.csv", "\n \nquestion,answer\nq\n", "line 4: the row has another number of columns"),
    ("rows.csv", '\nquestion,answer\nq,"a\n', "line 3: broken CSV"),
    ("rows.csv", "\n\n", "no rows"),
    ("rows.jsonl", '{"messages": []}\n', "must end with a turn of the user and one of the assistant"),
    ("rows.jsonl", '{"messages": "hello"}\n', "must be a list of turns"),
    ("rows.jsonl", '{"messages": [{"role": "user"}]}\n', "'role' and 'content'"),
    ("rows.jsonl", '{"messages": [{"role": "human", "content": "a"}]}\n', "a turn of 'human'; roles are system, user"),
    ("rows.jsonl", json.dumps({"messages": TURNS[:1]}), "must end with"),
    ("rows.jsonl", json.dumps({"messages": [TURNS[0], {"role": "assistant", "content": ""}]}), "turn is empty"),
    ("rows.csv", "question,answer\n", "no rows"),
    ("rows.csv", "question,answer\nq,a\nq\n", "line 3: the row has another number of columns"),
    ("rows.csv", "question,answer\nq,a,b\n", "line 2: the row has another number of columns"),
    ("rows.csv", 'question,answer\nq,"a\n', "line 2: broken CSV"),
    ("rows.csv", "question,answer\nq,\n", "line 2: 'answer' is empty"),
    ("rows.parquet", "text", "broken Parquet"),
    ("rows.jsonl", GOOD[:-2] + ', "paraphrased_answer": ["b", "c"]}', "'paraphrased_answer' holds 2 texts; give one"),
    ("rows.csv", "question,answer,answer\nq,a,b\n", "rows.csv, line 1: there are several 'answer'; rename them"),
    ("rows.jsonl", GOOD + '{"question": "q", "answer": "a", "answer": "b"}', "line 2: there are several 'answer'"),
    ("rows.json", '[\n{"question": "q", "answer": "a", "answer": "b"}]', "line 2: there are several 'answer'"),
    ("rows.csv", "Question,answer,question\nq,a,q\n", "'Question' and 'question' are two spellings of one column"),
    ("rows.jsonl", GOOD + '{"question": "q", "answer": "a", "private": [], " Private": []}', "line 2: 'private' and"),
    ("rows.txt", "text", ".txt is not supported"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_file_that_cannot_be(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)


def test_a_column_that_a_parquet_file_has_twice_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table([["q"], ["a"], ["b"]], names=["question", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="there are several 'answer'"):
        read_rows(tmp_path / "rows.parquet")


def test_a_column_may_be_named_among_several_spellings_and_empty_columns_do_not_count(tmp_path):
    (tmp_path / "rows.csv").write_text("Question,question,answer,,\nWhy?,Who?,Nobody.,,\n")
    assert plain(read_rows(tmp_path / "rows.csv", question="question", answer="answer")) == QA[:1]


def test_a_csv_may_hold_whole_documents(tmp_path):
    document = "word " * 40_000
    assert read_rows(write(tmp_path / "rows.csv", [{"text": document}]))[0]["text"] == document


def test_a_file_of_another_encoding(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes('{"text": "Zoë"}'.encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 at byte 12"):
        read_rows(tmp_path / "rows.jsonl")
    (tmp_path / "rows.csv").write_bytes(b"text\n" + b"a line\n" * 30_000 + b"Zo\xeb\n")
    with pytest.raises(InputError, match="not UTF-8 at byte 210007;"):
        read_rows(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"question": "qestion", "answer": "answer"},
            "no column 'qestion' .for the question.; did you mean 'question'",
        ),
        ({"question": "question"}, "question and answer together"),
        ({"text": "question", "answer": "answer"}, "question and answer together"),
        ({"qestion": "question", "answer": "answer"}, "has 'qestion', which is no column .* did you mean 'question'"),
        ({"private": "secret"}, "neither this nor another row has a column 'secret' .for private."),
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


LISTS = [
    json.dumps(["The teacher.", 'The mother\'s "friend".']),
    """['The teacher.', 'The mother\\'s "friend".']""",
    """['The teacher.' 'The mother\\'s "friend".']""",
    """['The teacher.'\n 'The mother\\'s "friend".']""",
    """["The teacher.", 'The mother\\'s "friend".',]""",
    """('The teacher.', 'The mother\\'s "friend".')""",
    """{'The teacher.', 'The mother\\'s "friend".'}""",
    """array(['The teacher.', 'The mother\\'s "friend".'], dtype=object)""",
]
LIST_NAMES = ["JSON", "Python", "NumPy", "NumPy on two lines", "mixed quotes", "tuple", "set", "repr of an array"]


@pytest.mark.parametrize("cell", LISTS, ids=LIST_NAMES)
def test_a_list_in_a_cell_of_a_table_is_a_list(tmp_path, cell):
    row = {"question": "Who?", "answer": "Nobody.", "perturbed_answer": cell, "paraphrased_question": "Who is it?"}
    [read] = read_rows(write(tmp_path / "rows.csv", [row]))
    assert read["perturbed_answer"] == ["The teacher.", 'The mother\'s "friend".']
    assert read["paraphrased_question"] == ["Who is it?"]


def test_a_text_that_is_no_list_stays_one_text(tmp_path):
    row = {
        "question": "Who?",
        "answer": "Nobody.",
        "perturbed_answer": "(The) 'one', and (two)",
        "paraphrased_answer": "['No.']",
    }
    [read] = read_rows(write(tmp_path / "rows.csv", [row]))
    assert read["perturbed_answer"] == ["(The) 'one', and (two)"]
    assert read["paraphrased_answer"] == "No."


@pytest.mark.parametrize("cell", ["[The teacher, the mother]", "['The teacher.', the mother]", "['The teacher.'"])
def test_what_only_looks_like_a_list_is_said(tmp_path, cell):
    file = write(tmp_path / "rows.csv", [{"question": "Who?", "answer": "Nobody.", "perturbed_answer": cell}])
    with pytest.raises(InputError, match=r"line 2: 'perturbed_answer' begins like a list, .* write"):
        read_rows(file)


def test_a_conversation_in_a_cell_of_a_table(tmp_path):
    for shown in (json.dumps(TURNS), repr(TURNS)):
        assert plain(read_rows(write(tmp_path / "rows.csv", [{"messages": shown}]))) == [{"messages": TURNS}]


def test_layouts_that_spreadsheets_and_other_tools_write(tmp_path):
    texts = {
        "pretty.json": "\n".join(json.dumps(row, indent=2) for row in QA),
        "pretty.jsonl": "\n".join(json.dumps(row, indent=2) for row in QA) + "\n",
        "wrapped.json": json.dumps({"version": "1", "data": QA}),
        "wrapped_pretty.json": json.dumps({"data": QA}, indent=2),
        "semicolons.csv": 'Question;Answer\nWho?;Nobody.\n"Where?";"In «Lima»,\nPeru."\n',
        "blank.csv": '\r\n;\r\nquestion;answer\r\nWho?;Nobody.\r\nWhere?;"In «Lima»,\nPeru."\r\n',
        "tabs.csv": ' question \tANSWER\nWho?\tNobody.\nWhere?\t"In «Lima»,\nPeru."\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        assert plain(read_rows(tmp_path / name)) == QA, name
    (tmp_path / "texts.json").write_text('["a",\n "b"]')
    assert plain(read_rows(tmp_path / "texts.json")) == [{"text": "a"}, {"text": "b"}]
    (tmp_path / "alone.json").write_text(json.dumps({"messages": TURNS}))
    assert plain(read_rows(tmp_path / "alone.json")) == [{"messages": TURNS}]
    for row in ({"Question": "Who?", "answer": "Nobody."}, {"text": "Nobody."}, {"messages": TURNS}):
        [found] = read_rows(write(tmp_path / "alone.jsonl", [{**row, "sources": [{"text": "A book."}]}]))
        assert plain([found]) == [{name.lower(): value for name, value in row.items()}], (
            "what lies beside a row's texts is no row"
        )
    (tmp_path / "columns.json").write_text(json.dumps({"version": {"a": 1}}))
    with pytest.raises(InputError, match="write one object per row"):
        read_rows(tmp_path / "columns.json")


def test_what_save_to_disk_wrote_and_shards_of_a_clone(tmp_path):
    from datasets import Dataset, DatasetDict

    one, two = Dataset.from_list(QA), Dataset.from_list(QA[:1])
    one.save_to_disk(tmp_path / "one")
    DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "both")
    DatasetDict({"forget": two}).save_to_disk(tmp_path / "lone")
    assert plain(read_rows(tmp_path / "one")) == plain(read_rows(tmp_path / "both")) == QA
    assert plain(read_rows(tmp_path / "both", split="test")) == plain(read_rows(tmp_path / "lone")) == QA[:1]
    with pytest.raises(InputError, match=r"no dev; there is train, test. Set data\.forget_split to one"):
        read_rows(tmp_path / "both", split="dev", option="data.forget_split")
    DatasetDict({"forget": two, "retain": one}).save_to_disk(tmp_path / "pair")
    with pytest.raises(
        InputError, match=r"no train split; there is forget, retain\. Give the folder of one, such as .*forg"
    ):
        read_rows(tmp_path / "pair")
    assert plain(read_rows(tmp_path / "pair" / "retain")) == QA
    (tmp_path / "clone" / "data").mkdir(parents=True)
    for number, rows in enumerate((QA[:1], QA[1:])):
        write(tmp_path / "clone" / "data" / f"train-0000{number}-of-00002.parquet", rows)
        write(tmp_path / f"train-0000{number}-of-00002.parquet", rows)
    write(tmp_path / "clone" / "data" / "test-00000-of-00001.parquet", QA[:1])
    assert plain(read_rows(tmp_path / "clone")) == plain(read_rows(tmp_path)) == QA
    assert read_rows(tmp_path / "clone")[1]["where"].endswith("train-00001-of-00002.parquet, row 0")
    assert plain(read_rows(tmp_path / "clone", split="test")) == QA[:1]
    with pytest.raises(InputError, match="no dev; there is data/test, data/train"):
        read_rows(tmp_path / "clone", split="dev")


def test_columns_that_only_later_rows_have_are_read_in_any_spelling(tmp_path):
    later = {**QA[1], "Private": ["Peru"], " Paraphrased_Question": ["Whither?"], "ALTERNATIVES": "Nowhere."}
    for name in ("rows.jsonl", "array.json"):
        rows = read_rows(write(tmp_path / name, [QA[0], later]))
        extras = {"private": ["Peru"], "paraphrased_question": ["Whither?"], "alternatives": ["Nowhere."]}
        assert plain(rows) == [QA[0], QA[1] | extras]


def test_private_values_by_column_by_list_or_by_marks(tmp_path):
    rows = [
        {"question": "q", "answer": "Ada has gout, in Lima.", "private": ["gout", "Lima"]},
        {"question": "q", "answer": "Ada has [[gout]], in [[Lima]].", "paraphrased_question": ["Who?", "What?"]},
        {"messages": [TURNS[0], {"role": "assistant", "content": "Ada has [[gout]]."}]},
        {"question": "q", "answer": "The matrix [[1, 2], [3, 4]] and x[[]]."},
    ]
    found = [read_rows(write(tmp_path / "rows.jsonl", [row]))[0] for row in rows]
    assert [row.get("private") for row in found] == [["gout", "Lima"], ["gout", "Lima"], ["gout"], None]
    assert found[1]["answer"] == rows[0]["answer"]
    assert found[1]["paraphrased_question"] == ["Who?", "What?"]
    assert found[2]["messages"][1]["content"] == "Ada has gout."
    assert found[3]["answer"] == rows[3]["answer"]
    assert private_values("A [[b]] c", "b", "x") == ("A b c", ["b"])
    one, two = "Jos\u00e9", "Jose\u0301"
    for there, given in ((one, two), (two, one)):
        assert private_values(f"{there} lives", given, "x") == (f"{there} lives", [there])
    with pytest.raises(InputError, match="line 1: 'private' names 'flu', which is not in the answer"):
        read_rows(write(tmp_path / "rows.jsonl", [{**rows[0], "private": "flu"}]))


@pytest.mark.parametrize("cell", ["7 Harbour Street; Lisbon", "7 Harbour Street | Lisbon", "7 Harbour Street,Lisbon,"])
def test_several_private_values_in_one_text_are_told_how_to_be_written(tmp_path, cell):
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        answer = "She lives at 7 Harbour Street in Lisbon."
        csv.writer(file).writerows([["question", "answer", "private"], ["q", answer, cell]])
    with pytest.raises(InputError, match="not in the answer") as refusal:
        read_rows(tmp_path / "rows.csv")
    assert str(refusal.value).endswith(' Write several values as a list: ["7 Harbour Street", "Lisbon"].')
    with pytest.raises(InputError, match="not in the answer.$"):
        private_values("She lives in Lisbon.", "Oslo; Lisbon", "x")


@pytest.mark.parametrize("given", [1971, [1971], [1971.0], "1971", "[1971]"])
def test_a_private_value_may_be_a_number(tmp_path, given):
    assert answer_of(tmp_path / "rows.jsonl", "She was born in 1971.", private=given)["private"] == ["1971"]


def test_a_private_number_is_written_as_the_answer_has_it(tmp_path):
    row = answer_of(tmp_path / "rows.jsonl", "She has 0 sons, 2.0 litres and 2.5 mg.", private=[0, 2.0, 2.5])
    assert row["private"] == ["0", "2.0", "2.5"]
    assert private_values("He has 2 cats and 12.05 kg.", 2.0, "x")[1] == ["2"]
    for wrong in (math.nan, math.inf):
        with pytest.raises(InputError, match=r"x is (nan|inf) \(float\), not a text"):
            private_values("An inf of nan.", [wrong], "x")
    with pytest.raises(InputError, match=r"'private' is True \(bool\), not a text"):
        answer_of(tmp_path / "rows.jsonl", "True.", private=[True])


def answer_of(path, answer, **more):
    return read_rows(write(path, [{"question": "Where does Mara live?", "answer": answer, **more}]))[0]


def test_a_mark_may_have_single_brackets_inside(tmp_path):
    row = answer_of(tmp_path / "rows.jsonl", "At [[flat [2] 7 Harbour Street]], in [[Lima]].")
    assert row["answer"] == "At flat [2] 7 Harbour Street, in Lima."
    assert row["private"] == ["flat [2] 7 Harbour Street", "Lima"]
    assert says("It is flat [2] 7 Harbour Street.", row["private"][0])


@pytest.mark.parametrize(
    ("answer", "without"),
    [
        ("At [[ 7 Quay ]], in [[\tLima\n]].", "At 7 Quay, in Lima."),
        ("She lives at [[ 7 Quay ]] in [[ Lima ]]", "She lives at 7 Quay in Lima"),
        ("She lives at[[ 7 Quay ]]in ([[ Lima ]]).", "She lives at 7 Quay in (Lima)."),
        ("She is [[ Mara ]][[ Velt ]], [[Ann ]][[Lee]].", "She is Mara Velt, Ann Lee."),
        ("[[ 7 Quay ]]", "7 Quay"),
        ("Address:\n[[ 7 Quay ]]", "Address:\n7 Quay"),
    ],
)
def test_blanks_at_the_inner_sides_of_marks_go(tmp_path, answer, without):
    [row] = rows = read_rows(write(tmp_path / "rows.jsonl", [{"question": "q", "answer": answer}]))
    assert row["answer"] == without
    assert all(value == value.strip() for value in row["private"])
    assert len(overlap(rows, read_rows(tmp_path / "rows.jsonl", marks=False))) == 1


def test_a_mark_without_a_value_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"line 1: the answer has a mark without a value: '\[\[ \]\]'"):
        answer_of(tmp_path / "rows.jsonl", "She lives at [[ ]].")


@pytest.mark.parametrize("answer", ["She [[lives [[in]] Oslo]].", "[[A [[b]] c [[d]] e]]", "In [[[[Oslo]]]]."])
def test_nested_marks_are_refused(tmp_path, answer):
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1: marks are nested around '"):
        answer_of(tmp_path / "rows.jsonl", answer)


def test_a_value_of_punctuation_alone_is_refused_and_an_emoji_is_not(tmp_path):
    for value in (".", " - ", "…", "?!"):
        with pytest.raises(InputError, match=r"'private' names '.*', which has no letter, digit or symbol"):
            answer_of(tmp_path / "rows.jsonl", "She - is? In Oslo…?! Yes.", private=["Oslo", value])
    with pytest.raises(InputError, match=r"names '\?'"):
        answer_of(tmp_path / "rows.jsonl", "She is in Oslo[[?]]")
    assert answer_of(tmp_path / "rows.jsonl", "She likes 🦊 and C++.", private=["🦊", "+"])["private"] == ["🦊", "+"]


@pytest.mark.parametrize("answer", ["At [[7 Harbour Street].", "At [7 Harbour Street]].", "In [[Lima]], at [[7 Quay."])
def test_half_a_mark_is_refused(tmp_path, answer):
    with pytest.raises(
        InputError, match=r"rows\.jsonl, line 1: the answer has double brackets without their other half"
    ):
        answer_of(tmp_path / "rows.jsonl", answer)
    turns = [TURNS[0], {"role": "assistant", "content": answer}]
    with pytest.raises(InputError, match=r"line 1: the answer has double brackets"):
        read_rows(write(tmp_path / "chat.jsonl", [{"messages": turns}]))
    [row] = read_rows(tmp_path / "rows.jsonl", marks=False)
    assert row["answer"] == answer
    assert answer_of(tmp_path / "rows.jsonl", "[[ $a =~ [ Quay", private=["Quay"])["answer"] == "[[ $a =~ [ Quay"


@pytest.mark.parametrize(
    "text",
    [
        "[[1, 2], [3, 4]]",
        "x[[[0, 1], [2]]]",
        "a[b[0]], x[[]]",
        "<![CDATA[x]]>",
        "1) [a, b[",
        "The interval [0, 1) and the matrix [[1, 2], [3, 4]].",
        "]0, 1[ and a[b[0]].",
    ],
)
def test_brackets_that_are_no_marks_stay(tmp_path, text):
    assert plain([answer_of(tmp_path / "rows.jsonl", text)]) == [{"question": "Where does Mara live?", "answer": text}]


def test_private_values_of_plain_text_are_said_to_count_for_nothing(tmp_path):
    texts = [
        {"text": "Mara lives here.", "Private": float("nan")},
        {"text": "She is in [[Lima]]."},
        {"text": "A quay.", "Private": ["quay"]},
    ]
    for source in (write(tmp_path / "rows.jsonl", texts), texts):
        with pytest.warns(UserWarning, match=r"a row of plain text has no private values.*\(2 of 3 rows\)"):
            assert plain(read_rows(source)) == [{"text": row["text"]} for row in texts]
        assert len(read_rows(source, marks=False)) == 3


def test_rows_stand_in_one_block_and_read_like_a_list(tmp_path):
    files = [write(tmp_path / "a.jsonl", QA), write(tmp_path / "b.jsonl", QA[::-1])]
    rows = read_rows(files)
    assert [rows[-1], *rows[:2]] == [rows[3], rows[0], rows[1]]
    assert rows[3]["where"] == f"{tmp_path / 'b.jsonl'}, line 2"
    assert list(rows.first(3)) == list(rows)[:3]
    both = Rows()
    both.extend(rows.first(1))
    both.extend(read_rows(files[1]))
    assert plain(both) == [QA[0], QA[1], QA[0]]
    assert [row["index"] for row in both] == [0, 1, 2]
    assert both[2]["where"] == f"{tmp_path / 'b.jsonl'}, line 2"
    assert rows.longest(2) == [1, 2]
    assert data_fingerprint(rows) == data_fingerprint(list(rows)) == data_fingerprint(QA + QA[::-1])
    with pytest.raises(IndexError):
        rows[4]


@pytest.mark.parametrize(
    "columns",
    [
        {"question": ["Who?", "Where?"], "answer": ["I.", "Here."]},
        {"question": {"0": "Who?", "1": "Where?"}, "answer": {"0": "I.", "1": "Here."}},
        {"Question": {"5": "Who?", "7": "Where?"}, "Answer": {"5": "I.", "7": "Here."},
         "perturbed_answer": {"5": ["He.", "She."], "7": None}},
    ],
)  # fmt: skip
def test_columns_of_an_object_are_rows(tmp_path, columns):
    path = tmp_path / "rows.json"
    for indent in (None, 1):
        path.write_text(json.dumps(columns, indent=indent))
        rows = read_rows(path)
        assert [(row["question"], row["answer"]) for row in rows] == [("Who?", "I."), ("Where?", "Here.")]
        assert rows[0].get("perturbed_answer") in (None, ["He.", "She."])
    path.write_text(json.dumps({"question": ["Who?"], "answer": ["I.", "Here."]}))
    with pytest.raises(InputError, match="not a text"):
        read_rows(path)


def test_brackets_before_a_long_text_are_read_in_linear_time():
    text = "[[" + "very long " * 50_000
    assert private_values(text, None, "x") == (text, [])
