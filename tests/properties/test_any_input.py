"""Whatever comes in, there is a result or one of the package's own errors: 1,510 drawn cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dipo_lightning.data.files import read_rows
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.errors import DiPOError
from tests.toys import toy_tokenizer

TOKENIZER = toy_tokenizer()
ODD = st.sampled_from(
    [
        "",
        " ",
        "\x00",
        "\x1b[31mred",
        "\u202eabc",
        "שלום",
        "مرحبا",
        "👩‍👩‍👧‍👦",
        "\u200b",
        "<s></s>",
        "{{ x }}",
        "\ufeff",
        "\r\n",
        "a" * 3000,
    ]
)
TEXT = st.one_of(ODD, st.text(max_size=30))  # without lone surrogates: no file in UTF-8 holds them
SCALAR = st.one_of(TEXT, st.none(), st.booleans(), st.integers(), st.floats())
NAMES = [
    "question",
    "answer",
    "prompt",
    "completion",
    "text",
    "messages",
    "perturbed_answer",
    "paraphrased_answer",
    "role",
    "content",
]
KEY = st.one_of(st.sampled_from(NAMES), st.text(max_size=5))
VALUE = st.recursive(
    SCALAR, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=3)), max_leaves=6
)
ROW = st.dictionaries(KEY, VALUE, max_size=4)
PAIR = st.fixed_dictionaries({"question": TEXT, "answer": TEXT})


def cases(count: int) -> Any:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


@cases(700)
@given(rows=st.one_of(st.lists(ROW, max_size=4), st.lists(PAIR, max_size=4)), repeat=st.booleans())
def test_files_of_any_schema(tmp_path: Path, rows: list[Any], repeat: bool) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows * (1 + repeat)), encoding="utf-8")
    try:
        found = read_rows(path)
    except DiPOError as error:
        assert str(error)  # noqa: PT017
    else:
        assert [row["index"] for row in found] == list(range(len(rows) * (1 + repeat)))


@cases(300)
@given(
    content=st.one_of(st.binary(max_size=80), VALUE.map(lambda value: json.dumps(value).encode())),
    ending=st.sampled_from(["json", "jsonl", "csv", "txt"]),
)
def test_files_of_any_bytes(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content)
    try:
        assert read_rows(path)
    except DiPOError as error:
        assert str(error)  # noqa: PT017


@cases(400)
@given(name=st.sampled_from(["plain", "llama2", "chat"]), question=TEXT, answer=TEXT)
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
