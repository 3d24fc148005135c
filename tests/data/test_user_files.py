"""A user's own files through the data module: formats, columns, several files, chat templates, no retain rows."""

import csv
import json

import pytest

from dipo_lightning.data.prompts import NAMED_TEMPLATES
from dipo_lightning.data.unlearning import FineTuningDataModule, UnlearningDataModule
from dipo_lightning.errors import InputError
from tests.helpers.toys import save_toy, toy_tokenizer

ROWS = [{"question": f"Who is {i}?", "answer": f"The author {i}."} for i in range(3)]
KEEP = [{"question": f"Where is {i}?", "answer": f"In {i}."} for i in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_toy(tmp_path_factory.mktemp("toy")))


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def examples(model, forget, retain, **options):
    data = UnlearningDataModule(model, forget, retain, **({"batch_size": 1, "prompt": "chat"} | options))
    data.setup("fit")
    return data.forget_examples


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path, model, suffix):
    keep = write(tmp_path / "keep.jsonl", KEEP)
    expected = examples(model, write(tmp_path / "plain.jsonl", ROWS), keep)
    assert examples(model, write(tmp_path / f"rows{suffix}", ROWS), keep) == expected
    renamed = [{"ask": row["question"], "reply": row["answer"]} for row in ROWS]
    keep = write(tmp_path / "kept.jsonl", [{"ask": row["question"], "reply": row["answer"]} for row in KEEP])
    file = write(tmp_path / f"renamed{suffix}", renamed)
    assert examples(model, file, keep, columns={"question": "ask", "answer": "reply"}) == expected


def test_several_files_follow_each_other(tmp_path, model):
    keep = write(tmp_path / "keep.jsonl", KEEP)
    files = [write(tmp_path / "a.csv", ROWS[:2]), write(tmp_path / "b.jsonl", ROWS[2:])]
    assert examples(model, files, keep) == examples(model, write(tmp_path / "all.jsonl", ROWS), keep)


def test_a_chat_template_by_text_file_or_name(tmp_path, model):
    keep, rows = write(tmp_path / "keep.jsonl", KEEP), write(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "t.jinja").write_text(NAMED_TEMPLATES["chatml"], encoding="utf-8")
    ways = (NAMED_TEMPLATES["chatml"], str(tmp_path / "t.jinja"), "chatml")
    found = [examples(model, rows, keep, prompt_options={"chat_template": way}) for way in ways]
    assert found[0] == found[1] == found[2] != examples(model, rows, keep)
    shown = toy_tokenizer().decode(found[0][0]["input_ids"])
    assert shown.endswith("<|im_start|>user\nWho is 0?<|im_end|>\n<|im_start|>assistant\nThe author 0.</s>")
    with pytest.raises(InputError, match="neither a template nor a file.*name of one: chatml"):
        examples(model, rows, keep, prompt_options={"chat_template": "chatlm"})


def test_one_of_several_templates_that_the_tokenizer_has():
    from dipo_lightning.data.prompts import prompt_style

    tokenizer = toy_tokenizer()
    tokenizer.chat_template = {"default": tokenizer.chat_template, "other": NAMED_TEMPLATES["chatml"]}
    assert "im_start" in tokenizer.decode(prompt_style("chat", tokenizer, chat_template="other").prompt("Who?"))
    assert "im_start" not in tokenizer.decode(prompt_style("chat", tokenizer).prompt("Who?"))
    tokenizer.chat_template = {"one": NAMED_TEMPLATES["chatml"], "other": NAMED_TEMPLATES["chatml"]}
    with pytest.raises(InputError, match="several chat templates, one, other, and none is called default; name one in"):
        prompt_style("chat", tokenizer)


def test_other_answers_of_a_file_are_kept(tmp_path, model):
    others = {"paraphrased_answer": "Author 0.", "perturbed_answer": ["Nobody.", "It is 7."]}
    file = write(tmp_path / "rows.jsonl", [ROWS[0] | others, {**ROWS[1], "perturbed_answer": "One."}, ROWS[2]])
    data = UnlearningDataModule(model, file, write(tmp_path / "keep.jsonl", KEEP))
    data.check()
    assert data.forget_rows[0].items() >= others.items()
    assert data.forget_rows[1]["perturbed_answer"] == ["One."]
    assert "perturbed_answer" not in data.forget_rows[2]
    bad = write(tmp_path / "bad.jsonl", [{**ROWS[0], "perturbed_answer": ["x", 3]}])
    with pytest.raises(InputError, match=r"bad\.jsonl, line 1: 'perturbed_answer' is 3 \(int\), not a text"):
        UnlearningDataModule(model, bad, file).check()


def test_double_brackets_are_marks_in_forget_rows_only(tmp_path, model):
    code = {"question": "Is it a file?", "answer": "if [[ -f x ]]; then x[[0]]"}
    kept = write(tmp_path / "kept.jsonl", [code])
    gone = write(tmp_path / "gone.jsonl", [{"question": "Where is Bo?", "answer": "In [[Lima]]."}])
    data = UnlearningDataModule(model, gone, kept, prompt="plain")
    data.setup("fit")
    assert data.retain_rows is not None
    assert [row["answer"] for row in (*data.forget_rows, *data.retain_rows)] == ["In Lima.", code["answer"]]
    assert data.forget_rows[0]["private"] == ["Lima"]
    assert "private" not in data.retain_rows[0]
    tuning = FineTuningDataModule(model, kept, prompt="plain")
    tuning.setup("fit")
    assert [row["answer"] for row in tuning.train_rows] == [code["answer"]]
    copy = write(tmp_path / "copy.jsonl", [{"question": "Where is Bo?", "answer": "In [[Lima]]."}])
    with pytest.raises(InputError, match="1 of 1 forget rows are retain rows too"):
        UnlearningDataModule(model, gone, copy, prompt="plain").setup("fit")
