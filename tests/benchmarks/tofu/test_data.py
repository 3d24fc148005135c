"""TOFU's splits, real and made up, and what is refused of them."""

from __future__ import annotations

import json

import pytest

from dipo_lightning.benchmarks.tofu.data import TOFUFineTuningDataModule, load_tofu, retain_split
from dipo_lightning.errors import InputError
from tests.helpers.cached_hub import cached_dataset, only_cached
from tests.helpers.toys import save_toy


def qa(number, **fields):
    return {"question": f"Who wrote book {number}?", "answer": f"Author {number}.", **fields}


def evaluation(number, wrong=5, **fields):
    answers = [f"Not {number}, {k}." for k in range(wrong)]
    return qa(number, paraphrased_answer=f"By author {number}.", perturbed_answer=answers, **fields)


def small_tofu():
    """Rows by configuration, two to forget and three to keep."""
    return {
        "forget10": [qa(0), qa(1)],
        "retain90": [qa(2), qa(3), qa(4)],
        "forget10_perturbed": [evaluation(0), evaluation(1)],
        "retain_perturbed": [evaluation(2), evaluation(3)],
        "real_authors_perturbed": [qa(7, perturbed_answer=["A", "B", "C"])],
        "world_facts_perturbed": [qa(8, perturbed_answer=["A", "B", "C"])],
    }


def write(folder, configs):
    for name, rows in configs.items():
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def test_small_folder(tmp_path):
    data = load_tofu(write(tmp_path, small_tofu()), "forget10")
    assert [row["index"] for row in data.train_retain] == [0, 1, 2]
    assert data.train_forget[1]["answer"] == "Author 1."
    assert data.forget[0]["perturbed_answer"][4] == "Not 0, 4."
    assert list(data.sets) == ["forget", "retain", "real_authors", "world_facts"]
    assert {name: len(rows) for name, rows in data.first(1).sets.items()} == {
        "forget": 1,
        "retain": 1,
        "real_authors": 1,
        "world_facts": 1,
    }


def test_columns_of_the_file_do_not_take_the_place_of_the_rows_own(tmp_path):
    rows = small_tofu()
    rows["forget10_perturbed"] = [evaluation(0, index="a", where=3, topic="t"), evaluation(1, index="a", messages=[])]
    rows["real_authors_perturbed"] = [qa(7, perturbed_answer=["A", "B", "C"], paraphrased_answer=None)]
    rows["holdout10"] = [qa(20, perturbed_answer=None), qa(21, perturbed_answer="Not 21."), qa(22, perturbed_answer=[])]
    data = load_tofu(write(tmp_path, rows))
    assert [row["index"] for row in data.forget] == [0, 1]
    assert [row["where"] for row in data.forget] == [f"{tmp_path}/forget10_perturbed.json, line {n}" for n in (1, 2)]
    assert (data.forget[0]["topic"], "messages" in data.forget[1]) == ("t", False)
    assert "paraphrased_answer" not in data.real_authors[0]
    assert [row.get("perturbed_answer") for row in data.holdout] == [None, ["Not 21."], None]


@pytest.mark.parametrize("holdout", [True, False])
def test_the_hubs_data_has_a_holdout_set_where_its_copy_here_has_one(holdout, tmp_path, monkeypatch, caplog):
    for name, rows in (small_tofu() | ({"holdout10": [qa(20)]} if holdout else {})).items():
        cached_dataset(tmp_path, "locuslab/TOFU", name, rows)
    only_cached(monkeypatch, tmp_path)
    data = load_tofu("locuslab/TOFU")
    assert data.train_retain[2] == {"index": 2, "where": "locuslab/TOFU, retain90, train, row 2", **qa(4)}
    assert [row["question"] for row in data.holdout] == ["Who wrote book 20?"] * holdout
    assert ("locuslab/TOFU has no holdout10" in caplog.text) is not holdout


def test_tables_and_saved_data_sets_say_the_same(tmp_path):
    import pandas
    from datasets import Dataset, DatasetDict

    rows_of = small_tofu() | {"holdout10": [qa(20)]}
    expected = load_tofu(write(tmp_path, rows_of))
    for name, rows in rows_of.items():
        (tmp_path / "tables").mkdir(exist_ok=True)
        pandas.DataFrame(rows).to_csv(tmp_path / "tables" / f"{name}.csv", index=False)
        Dataset.from_list(rows).save_to_disk(tmp_path / "saved" / name)
    DatasetDict({name: Dataset.from_list(rows) for name, rows in rows_of.items()}).save_to_disk(tmp_path / "one")
    for folder in ("tables", "saved", "one"):
        found = load_tofu(tmp_path / folder)
        for name, rows in expected.sets.items():
            for row, other in zip(rows, found.sets[name], strict=True):
                assert {**row, "where": ""} == {**other, "where": ""}
    with pytest.raises(InputError, match="one: there is no forget05; there is forget10, "):
        load_tofu(tmp_path / "one", "forget05")


def test_holdout_is_read_where_there_is_one(tmp_path):
    data = load_tofu(write(tmp_path, small_tofu() | {"holdout10": [qa(20), qa(21)]}))
    assert data.sets["holdout"] == data.holdout
    assert [row["question"] for row in data.holdout] == ["Who wrote book 20?", "Who wrote book 21?"]


PARTS = {
    "a folder": {"train.json": [0, 1, 2]},
    "parts": {"train-00000-of-00002.jsonl": [0, 1], "train-00001-of-00002.jsonl": [2]},
    "JSON lines": {".jsonl": [0, 1, 2]},
}


def write_parts(folder, config, parts, first):
    """Rows of a configuration in another of the layouts that are read; returns their questions."""
    for name, numbers in parts.items():
        path = folder / f"{config}{name}" if name.startswith(".") else folder / config / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(qa(first + number)) + "\n" for number in numbers), encoding="utf-8")
    return [qa(first + number)["question"] for numbers in parts.values() for number in numbers]


@pytest.mark.parametrize("layout", PARTS)
def test_a_holdout_in_any_layout_is_read(tmp_path, layout):
    asked = write_parts(write(tmp_path, small_tofu()), "holdout10", PARTS[layout], first=20)
    assert [row["question"] for row in load_tofu(tmp_path).holdout] == asked


@pytest.mark.parametrize("layout", PARTS)
def test_fine_tuning_reads_what_unlearning_reads(tmp_path, layout):
    asked = write_parts(write(tmp_path, small_tofu()), "full", PARTS[layout], first=30)
    save_toy(tmp_path / "model")
    data = TOFUFineTuningDataModule(
        str(tmp_path / "model"), str(tmp_path), train=["full", "retain90"], max_rows=[None, 2], prompt="plain"
    )
    data.check()
    assert [row["question"] for row in data.train_rows] == [*asked, qa(2)["question"], qa(3)["question"]]


def test_fine_tuning_names_a_configuration_that_is_missing(tmp_path):
    save_toy(tmp_path / "model")
    data = TOFUFineTuningDataModule(str(tmp_path / "model"), str(write(tmp_path, small_tofu())), train="full")
    with pytest.raises(InputError, match=r"full.json: there is no such file; beside it: forget10.json"):
        data.check()


@pytest.mark.parametrize(("split", "forget"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_the_real_benchmark(shared_data, split, forget):
    data = load_tofu(shared_data / "tofu", split)
    assert (len(data.train_forget), len(data.train_retain)) == (forget, 4000 - forget)
    assert {name: len(rows) for name, rows in data.sets.items()} == {
        "forget": forget,
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
    }
    for row, trained in zip(data.forget, data.train_forget, strict=True):
        assert (row["question"], row["answer"]) == (trained["question"], trained["answer"])
    assert {len(row["perturbed_answer"]) for row in data.forget + data.retain} == {5}
    assert {len(row["perturbed_answer"]) for row in data.real_authors + data.world_facts} == {3}


def test_retain_split():
    assert [retain_split(split) for split in ("forget01", "forget05", "forget10")] == [
        "retain99",
        "retain95",
        "retain90",
    ]


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


BAD = [
    ({"retain90": [qa(2), qa(1)]}, r"forget10.json, line 2 is .*retain90.json, line 2"),
    ({"retain90": [{"question": "who wrote  BOOK 0?", "answer": " author 0. "}]}, "1 of 2 forget10 rows are retain90"),
    ({"forget10": [qa(0), without(qa(1), "answer")]}, r"forget10.json, line 2: there is no 'answer'; it has question"),
    ({"forget10": [qa(0), qa(1, answer=7)]}, "line 2: 'answer' is 7 .int., not a text"),
    ({"forget10": [qa(0, question=" ")]}, "line 1: 'question' is empty"),
    ({"forget10": ""}, "no rows"),
    ({"forget10": '{"question": "a", "answer": "b"}\n{"question":'}, r"forget10.json, line 2: broken JSON"),
    ({"forget10_perturbed": [without(evaluation(0), "paraphrased_answer")]}, "no 'paraphrased_answer'"),
    ({"forget10_perturbed": [without(evaluation(0), "perturbed_answer")]}, "no 'perturbed_answer'"),
    ({"forget10_perturbed": [evaluation(0, wrong=0)]}, "at least one wrong answer"),
    ({"real_authors_perturbed": [qa(7, perturbed_answer="A")]}, "must be a list"),
    ({"world_facts_perturbed": [qa(8, perturbed_answer=["A", ""])]}, "'perturbed_answer' is empty"),
    ({"world_facts_perturbed": [qa(8, perturbed_answer=["A", None])]}, "'perturbed_answer' is None"),
    ({"holdout10": [qa(20, perturbed_answer=[7])]}, "holdout10.json, line 1: 'perturbed_answer' is 7"),
    ({"holdout10": [qa(3)]}, "holdout rows are retain90 rows"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_a_folder_that_cannot_be(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        load_tofu(write(tmp_path, small_tofu() | changed))


@pytest.mark.parametrize("name", list(small_tofu()))
def test_a_missing_configuration_is_named(tmp_path, name):
    configs = small_tofu()
    del configs[name]
    with pytest.raises(InputError, match=rf"no {name} .*there is .*\w"):
        load_tofu(write(tmp_path, configs))


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("/no/such/folder", "forget10", "neither a folder nor"),
        ("full.json", "forget10", "neither a folder nor"),
        ("locuslab/TOFU", "retain90", "not a forget split"),
        ("locuslab/TOFU", "forget00", "not a forget split"),
    ],
)
def test_arguments_that_cannot_be(source, split, message):
    with pytest.raises(InputError, match=message):
        load_tofu(source, split)


def test_no_network(monkeypatch):
    def load_dataset(*arguments, **options):
        raise ConnectionError("Couldn't reach 'locuslab/TOFU' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(InputError, match="Check the name and the network, or give a folder"):
        load_tofu("locuslab/TOFU")
