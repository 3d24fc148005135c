"""Whatever comes in as data or as a prompt's option, there is a result or one of the package's own errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipo_lightning.benchmarks.tofu.data import load_tofu
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.data.rows import read_rows
from dipo_lightning.data.tokenization import tokenize_rows
from dipo_lightning.errors import DiPOError
from tests.helpers.toys import toy_tokenizer
from tests.properties.drawing import KEY, SCALAR, TEXT, VALUE, cases

TOKENIZER = toy_tokenizer()
ROW = st.dictionaries(KEY, VALUE, max_size=4)
PAIR = st.fixed_dictionaries({"question": TEXT, "answer": TEXT})


@cases(700)
@given(rows=st.one_of(st.lists(ROW, max_size=4), st.lists(PAIR, max_size=4)), repeat=st.booleans())
def test_files_of_any_schema(tmp_path: Path, rows: list[Any], repeat: bool) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows * (1 + repeat)), encoding="utf-8")
    try:
        found = read_rows(path)
    except DiPOError as error:
        assert str(error)  # noqa: PT017
        return
    assert [row["index"] for row in found] == list(range(len(rows) * (1 + repeat)))
    try:
        tokenized = tokenize_rows(found, prompt_style("plain", TOKENIZER), 64, "skip")
    except DiPOError as error:
        assert str(error)  # noqa: PT017
    else:
        assert len(tokenized.examples) <= len(found)


@cases(300)
@given(
    content=st.one_of(st.binary(max_size=80), VALUE.map(lambda value: json.dumps(value).encode())),
    ending=st.sampled_from(["json", "jsonl", "csv", "parquet", "txt"]),
)
def test_files_of_any_bytes(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content)
    try:
        assert read_rows(path)
    except DiPOError as error:
        assert str(error)  # noqa: PT017


@cases(150)
@given(rows=st.lists(PAIR, min_size=1, max_size=3), columns=st.dictionaries(
    st.sampled_from(["question", "answer", "text", "messages"]), st.one_of(KEY, TEXT), max_size=3))  # fmt: skip
def test_columns_of_any_name(rows: list[Any], columns: dict[str, str]) -> None:
    try:
        assert read_rows(rows, **columns)
    except DiPOError as error:
        assert str(error)  # noqa: PT017


@cases(100)
@given(files=st.dictionaries(
    st.sampled_from(["forget10", "forget10_perturbed", "retain_perturbed", "retain90", "real_authors_perturbed"]),
    st.lists(st.one_of(ROW, PAIR), max_size=2), max_size=3))  # fmt: skip
def test_benchmark_folders_of_any_content(tmp_path_factory: Any, files: dict[str, list[Any]]) -> None:
    folder = tmp_path_factory.mktemp("tofu")
    for name, rows in files.items():
        (folder / f"{name}.json").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    for name in ("forget10", "forget10_perturbed", "retain_perturbed"):
        try:
            assert load_tofu(str(folder), name).sets()
        except DiPOError as error:
            assert str(error)  # noqa: PT017


@cases(400)
@given(name=st.sampled_from(["plain", "llama2", "chat", "text"]), question=TEXT, answer=TEXT)
def test_prompts_of_any_text(name: str, question: str, answer: str) -> None:
    try:
        style = prompt_style(name, TOKENIZER)
        ids, labels = style.example(question, answer)
    except DiPOError as error:
        assert str(error)  # noqa: PT017
        return
    prompt = style.prompt(question)
    assert ids[: len(prompt)] == prompt
    assert len(ids) == len(labels)
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))


@cases(110)
@given(
    name=st.one_of(st.sampled_from(["plain", "llama2", "chat", "text"]), TEXT),
    options=st.dictionaries(
        st.one_of(
            st.sampled_from(["system_prompt", "date", "chat_template", "template_options", "space", "end"]), TEXT
        ),
        SCALAR,
        max_size=2,
    ),
)
def test_prompt_options_of_any_value(name: str, options: dict[str, Any]) -> None:
    try:
        prompt_style(name, TOKENIZER, **options).prompt("Who?")
    except DiPOError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize("answer", ["word " * 210_000, "é" * 600_000, "\u202e" * 350_000], ids=["words", "one", "rtl"])
def test_an_answer_of_a_megabyte(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "Who?", "answer": answer}), encoding="utf-8")
    tokenized = tokenize_rows(read_rows(path), prompt_style("plain", TOKENIZER), 64)
    assert len(tokenized.examples[0]["input_ids"]) == 64
    assert tokenized.truncated == 1
