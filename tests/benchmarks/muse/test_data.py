"""MUSE's configurations on small data of the same schema, and what is refused of them."""

from __future__ import annotations

import json

import pytest

from dipo_lightning.benchmarks.muse.data import forget_texts, load_muse
from dipo_lightning.errors import InputError


def texts(name, count):
    return [{"text": f"{name} report {number}."} for number in range(count)]


def qa(name, count):
    return [{"question": f"{name} {number}?", "answer": f"{name} answer {number}"} for number in range(count)]


def small_muse():
    return {
        "train/forget": texts("forget", 3),
        "train/retain1": texts("retain1", 4),
        "train/retain2": texts("retain2", 4),
        "raw/forget": texts("raw forget", 2),
        "verbmem/forget": [{"prompt": f"The mayor {number}", "gt": f"said {number}"} for number in range(3)],
        "knowmem/forget_qa": qa("forget", 3),
        "knowmem/retain_qa": qa("retain", 4),
        "knowmem/forget_qa_icl": qa("forget example", 10),
        "knowmem/retain_qa_icl": qa("retain example", 11),
        "privleak/forget": texts("forget", 3),
        "privleak/retain": texts("retain2", 3),
        "privleak/holdout": texts("holdout", 3),
        "scal/forget_1": texts("scal 1", 1),
        "scal/forget_2": texts("scal 2", 2),
        "sust/forget_4": texts("sust 4", 1),
    }


def write(folder, parts):
    for part, rows in parts.items():
        path = folder / f"{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_small_folder(tmp_path):
    data = load_muse(write(tmp_path, small_muse()))
    assert [row["text"] for row in data.train_forget] == ["forget report 0.", "forget report 1.", "forget report 2."]
    assert len(data.train_retain) == len(data.retain2) == 4
    assert data.verbmem[2]["gt"] == "said 2"
    assert {name: len(rows) for name, rows in data.knowmem.items()} == {"forget": 3, "retain": 4}
    assert {name: len(rows) for name, rows in data.in_context.items()} == {"forget": 10, "retain": 10}
    assert list(data.privleak) == ["forget", "retain", "holdout"]
    assert data.privleak["holdout"][1]["index"] == 1
    short = data.first(2)
    assert [len(short.verbmem), len(short.knowmem["retain"]), len(short.privleak["holdout"])] == [2, 2, 2]
    assert [len(short.train_forget), len(short.in_context["forget"])] == [3, 10]


def test_folds(tmp_path):
    write(tmp_path, small_muse())
    assert [len(forget_texts(tmp_path, f"scal/forget_{fold}")) for fold in (1, 2)] == [1, 2]
    assert load_muse(tmp_path, forget="sust/forget_4").train_forget[0]["text"] == "sust 4 report 0."
    assert len(forget_texts(tmp_path, "raw/forget")) == 2
    with pytest.raises(InputError, match="not a forget set of MUSE"):
        forget_texts(tmp_path, "scal/forget_5")
    with pytest.raises(InputError, match="no scal/forget_3 .*there is .*scal/forget_1"):
        forget_texts(tmp_path, "scal/forget_3")


BAD = [
    ({"knowmem/forget_qa_icl": qa("example", 9)}, "forget_qa_icl has 9 in-context examples"),
    ({"train/forget": [{"text": ""}, {"text": " \n"}]}, "forget.jsonl, line 1: 'text' is empty"),
    ({"privleak/forget": [{"text": "a"}, {"text": " \n"}]}, "forget.jsonl, line 2: 'text' is empty"),
    ({"train/retain1": [{"content": "a"}]}, "retain1.jsonl, line 1: there is no 'text'; it has content"),
    ({"verbmem/forget": [{"prompt": "a"}]}, "no 'gt'"),
    ({"verbmem/forget": [{"prompt": "a", "gt": 4}]}, "'gt' is 4 .int."),
    ({"knowmem/retain_qa": []}, "no rows"),
    ({"train/retain2": texts("retain1", 1)}, "1 of 1 retain2 rows are train/retain1 rows"),
    ({"privleak/holdout": texts("forget", 1)}, "1 of 1 privleak/holdout rows are train/forget rows"),
    ({"privleak/holdout": texts("new", 1) + texts("retain1", 1)}, "line 2 is .*retain1.jsonl, line 1"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_a_folder_that_cannot_be(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        load_muse(write(tmp_path, small_muse() | changed))


def test_overlap_can_be_allowed(tmp_path):
    write(tmp_path, small_muse() | {"privleak/holdout": texts("forget", 1)})
    assert load_muse(tmp_path, allow_overlap=True).privleak["holdout"][0]["text"] == "forget report 0."


def test_raw_is_a_configuration_of_its_own(tmp_path):
    write(tmp_path, small_muse())
    with pytest.raises(InputError, match="no raw/retain1"):
        load_muse(tmp_path, forget="raw/forget")
    raw = {f"raw/{name}": texts(f"raw {name}", 2) for name in ("retain1", "retain2", "holdout")}
    data = load_muse(write(tmp_path, raw), forget="raw/forget")
    found = (data.train_forget, data.train_retain, data.retain2, data.holdout)
    assert [rows[1]["text"] for rows in found] == [
        f"raw {name} report 1." for name in ("forget", "retain1", "retain2", "holdout")
    ]
    write(tmp_path, {"raw/holdout": texts("retain1", 1)})  # no excerpt of it is measured, but it is held out
    with pytest.raises(InputError, match="1 of 1 raw/holdout rows are train/retain1 rows .*or set allow_overlap: true"):
        load_muse(tmp_path)


def test_a_copy_of_the_hubs_files(tmp_path):
    """Snapshots have a split in one or several files, each with its number."""
    import pyarrow
    import pyarrow.parquet

    for part, rows in small_muse().items():
        (tmp_path / part).parent.mkdir(exist_ok=True)
        cut = len(rows) if part != "train/forget" else 2
        for number, some in enumerate(filter(None, (rows[:cut], rows[cut:]))):
            name = f"{part}-{number:05d}-of-{1 + (cut < len(rows)):05d}.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(some), tmp_path / name)
    plain = load_muse(write(tmp_path / "plain", small_muse()))
    copied = load_muse(tmp_path)
    assert [row["text"] for row in copied.train_forget] == [row["text"] for row in plain.train_forget]
    assert copied.train_forget[2]["where"].endswith("train/forget-00001-of-00002.parquet, row 0")
    assert [row["index"] for row in copied.train_forget] == [0, 1, 2]


@pytest.mark.parametrize("part", ["train/retain2", "knowmem/retain_qa_icl", "privleak/retain"])
def test_a_missing_split_is_named(tmp_path, part):
    parts = small_muse()
    del parts[part]
    with pytest.raises(InputError, match=f"no {part} "):
        load_muse(write(tmp_path, parts))


def test_the_hub(monkeypatch):
    parts = small_muse()
    monkeypatch.setattr("datasets.load_dataset", lambda name, config, split: parts[f"{config}/{split}"])
    data = load_muse("muse-bench/MUSE-News")
    assert data.privleak["holdout"][0]["where"] == "muse-bench/MUSE-News, privleak, holdout, row 0"


@pytest.mark.parametrize("part", ["train/forget", "train/retain1", "train/retain2", "sust/forget_4"])
def test_an_empty_document_is_left_out_with_one_warning(tmp_path, part):
    """MUSE-News has one, row 821 of its forget set."""
    rows = [*small_muse()[part], {"text": ""}, {"text": "The last."}]
    write(tmp_path, small_muse() | {part: rows})
    with pytest.warns(UserWarning, match=f"{part}.jsonl, line {len(rows) - 1}") as said:
        data = load_muse(tmp_path, forget=part if part.startswith("sust") else "train/forget")
    assert len(said) == 1
    found = {"train/retain1": data.train_retain, "train/retain2": data.retain2}.get(part, data.train_forget)
    assert [row["index"] for row in found] == [*range(len(rows) - 2), len(rows) - 1]
    assert found[-1]["text"] == "The last."


def test_the_folder_that_muse_s_own_code_makes(tmp_path):
    """Arrays, of texts where there is but one field; ``raw`` and no ``train``."""
    parts = {name.replace("train/", "raw/"): rows for name, rows in small_muse().items() if name != "raw/forget"}
    for part, rows in parts.items():
        (tmp_path / part).parent.mkdir(exist_ok=True)
        plain = [row["text"] for row in rows] if "text" in rows[0] else rows
        (tmp_path / f"{part}.json").write_text(json.dumps(plain))
    expected = load_muse(write(tmp_path / "usual", small_muse()))
    for forget in ("train/forget", "raw/forget"):
        data = load_muse(tmp_path, forget=forget)
        for name in ("train_forget", "train_retain", "retain2"):
            assert [row["text"] for row in getattr(data, name)] == [row["text"] for row in getattr(expected, name)]
        assert [row["text"] for row in data.privleak["holdout"]] == [
            row["text"] for row in expected.privleak["holdout"]
        ]
    assert data.privleak["forget"][1]["where"] == f"{tmp_path / 'privleak' / 'forget.json'}, row 1"
