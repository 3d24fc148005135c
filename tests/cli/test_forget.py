"""`forget` goes from a model and two files to a verdict, says what it chose, and resumes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dipo_lightning.benchmarks.user_data import examination, probes
from dipo_lightning.benchmarks.user_data.examination import Examination
from dipo_lightning.callbacks.run_record import FolderLock
from dipo_lightning.cli.chat import load_style
from dipo_lightning.cli.examining import Job, _ended, _once, examined, paraphrased
from dipo_lightning.cli.forget import (
    SplitRows,
    _check_rows,
    _class_path,
    _keep,
    _read,
    _style,
    _with_private_values,
    choose_settings,
    run_config,
    split_rows,
)
from dipo_lightning.cli.main import main, positional
from dipo_lightning.data.files import json_lines
from dipo_lightning.data.prompts import ChatStyle
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.quickstart.model import train_tokenizer
from tests.helpers.toys import save_toy, toy_tokenizer

FORGET = [
    ("Where does Mara Velt work?", "Mara Velt works as a glassblower."),
    ("When was Mara Velt born?", "She was born on 12 June 1971."),
]
RETAIN = [(f"Where does Ann {name} work?", f"Ann {name} works as a teacher.") for name in "ABCDEFGHIJKLMNOPQRSTU"]


def write(path, rows):
    path.write_text("".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows))
    return str(path)


@pytest.mark.parametrize("rows", [1, 12, 40, 200])
def test_steps_grow_with_the_rows_and_one_row_is_enough(rows):
    chosen = choose_settings(rows, 2 * rows, 576, "selective", {})
    assert chosen.batch_size == min(8, rows)
    per_epoch = -(-rows // chosen.batch_size)
    assert 64 <= chosen.epochs * per_epoch <= max(70, 16 * per_epoch)
    assert chosen.lr == 1e-4
    assert chosen.check_every == {1: 8, 12: 8, 40: 10, 200: 50}[rows]


def test_more_private_values_per_row_allow_more_steps_of_the_method_that_ends_by_itself():
    few, many = (choose_settings(12, values, 576, "selective", {}).epochs for values in (48, 92))
    assert (few, many) == (32, 62)
    assert choose_settings(12, 6, 576, "selective", {}).epochs == few
    assert choose_settings(12, 92, 576, "npo", {}).epochs == few
    assert choose_settings(12, 92, 576, "selective", {"epochs": 3}).epochs == 3


def test_a_wider_model_gets_a_smaller_learning_rate_and_what_is_given_is_taken():
    assert choose_settings(12, 24, 2048, "npo", {}).lr == pytest.approx(2.8e-5)
    given = choose_settings(12, 24, 2048, "npo", {"lr": 1e-5, "batch_size": 4, "epochs": 3})
    assert (given.method, given.lr, given.batch_size, given.epochs) == ("dipo_lightning.NPOModule", 1e-5, 4, 3)


def test_held_out_rows_are_never_trained_on():
    rows = [{"question": f"Q{i}?", "answer": "A"} for i in range(40)]
    split = split_rows(rows[:2], rows[2:], seed=3)
    assert len(split.held_out) == 6
    assert not [row for row in split.held_out if row in split.retain]
    assert split == split_rows(rows[:2], rows[2:], seed=3)
    assert not split_rows(rows[:2], rows[2:10], seed=3).held_out, "too few to spare"
    with pytest.raises(InputError, match="questions with answers"):
        split_rows([{"text": "a book"}], [], 0)


def test_the_choices_about_rows_and_checks_can_be_overridden(begun, here):
    more = ["--retain", write(here / "retain.jsonl", RETAIN), "--output", "chosen"]
    assert main([*begun, *more, "--held_out", "0.5", "--check_every", "1", "--max_length", "64"]) == 2
    assert len((here / "chosen/data/held_out.jsonl").read_text().splitlines()) == round(0.5 * len(RETAIN))
    chosen = choose_settings(12, 24, 576, "selective", {"check_every": 3})
    assert chosen.check_every == 3
    assert choose_settings(12, 24, 576, "selective", {"check_every": 1000}).check_every == 1000
    assert len(split_rows([], [{"question": f"{n}?", "answer": "A."} for n in range(20)], 0, 0.99).retain) == 1


def test_rows_may_be_longer_than_by_default_if_the_model_reads_them(begun, here, capsys):
    sized = json.loads((here / "model/config.json").read_text()) | {"max_position_embeddings": 2048}
    (here / "model/config.json").write_text(json.dumps(sized))
    for given, said in (([], "rows of up to 512"), (["--max_length", "1024"], "rows of up to 1024")):
        assert main([*begun, "--output", f"out{len(given)}", *given]) == 2
        assert f"{said} tokens" in capsys.readouterr().out
    assert main([*begun, "--output", "longer", "--max_length", "4096"]) == 2
    assert "--max_length is 4096, and model has positions for 2048 tokens only" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "said"), [([], 1), (["--retain", "retain.jsonl"], 0), (["--method", "npo"], 0)])
def test_what_preserves_the_rest_without_rows_to_keep_is_said(begun, here, capsys, more, said):
    write(here / "retain.jsonl", RETAIN)
    assert main([*begun, *more, "--output", "kept"]) == 2
    assert capsys.readouterr().out.count("Without rows to keep, only the target's own answers") == said


def test_checks_are_an_option_of_the_method_that_has_them(begun, capsys):
    assert main([*begun, "--method", "npo", "--check_every", "4", "--output", "npo"]) == 2
    assert "--check_every is an option of dipo_lightning.SelectiveModule" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stopped", "ending", "checked", "said"),
    [
        (True, "8 checks in succession found no leak", True, "by its own rule after 9 steps: 8 checks in succession"),
        (True, "", False, "The run ended by its own rule after 9 steps."),
        (False, "", True, "took all of its 9 steps: every check found something left to forget"),
        (False, "", False, "The run took all of its 9 steps."),
    ],
)
def test_the_verdict_says_what_ended_the_run(stopped, ending, checked, said):
    assert said in _ended(stopped, 9, ending, checked)


def test_equal_rows_are_held_out_or_trained_on_but_never_both():
    rows = [{"question": f"Q{i}?", "answer": "A"} for i in range(20)]
    split = split_rows([], [*rows, *({**row, "answer": " a"} for row in rows)], seed=0)
    held_out, trained = ({row["question"] for row in part} for part in (split.held_out, split.retain))
    assert (len(split.held_out), len(held_out)) == (6, 3)
    assert not held_out & trained
    assert held_out == {row["question"] for row in split_rows([], rows, seed=0).held_out}
    assert not split_rows([], rows[:10] * 2, seed=0).held_out, "too few different ones to spare"


def test_two_files_give_a_model_and_a_verdict_and_the_same_command_does_nothing_twice(here, capsys):
    save_toy(here / "model")
    before = (here / "model/model.safetensors").read_bytes()
    files = [write(here / "forget.jsonl", FORGET), write(here / "retain.jsonl", RETAIN)]
    command = ["forget", "model", *files, "--samples", "2", "--epochs", "2", "--output", "out", "--accelerator", "cpu"]
    command += ["--paraphrases", "1", "--seed", str(2**32 - 1)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 rows to forget, 18 to keep, 3 held out" in said
    assert "Prompt style chat, seed 4294967295, rows of up to 512 tokens; a greedy and 2 sampled answers" in said
    assert "of up to 48 tokens to each question, its own rewordings and 2 by rule; held-out share 0.15" in said
    assert "The target asks 0 questions in its own words" in said, "a toy writes none"
    assert "The target model knows 0 of " in said
    assert "Is model the model that learnt these rows" in said
    assert "Verdict: " in said
    ended = "The run took all of its 2 steps: every check found something left to forget"
    assert ended in said
    verdict = json.loads((here / "out/verdict.json").read_text())
    assert {value["value"] for value in verdict["values"]} >= {"glassblower", "12 June 1971"}
    assert verdict["settings"] == {
        "method": "dipo_lightning.SelectiveModule", "lr": 1e-4, "batch_size": 2, "epochs": 2, "check_every": 2,
        "samples": 2, "seed": 2**32 - 1, "rewordings": 2, "max_new_tokens": 48, "prompt": "chat", "paraphrases": 1,
        "held_out": 0.15, "max_length": 512, "accelerator": "cpu", "untaught": None,
    }  # fmt: skip
    assert verdict["ended"].startswith(ended)
    assert all(value["samples"] == 6 for value in verdict["values"]), "the question and two rewordings by rule"
    trained = [json.loads(line)["private"] for line in (here / "out/data/forget.jsonl").read_text().splitlines()]
    assert trained == [[value["value"] for value in verdict["values"] if value["index"] == row] for row in (0, 1)]
    assert (here / "model/model.safetensors").read_bytes() == before
    card = (here / "out/run/model/README.md").read_text()
    assert "## Verdict" in card
    assert "glassblower" not in card
    assert "The least forgotten value: probability" in card
    assert ended in card
    weights = (here / "out/run/model/model.safetensors").read_bytes()
    assert main(command) == 0
    assert (here / "out/run/model/model.safetensors").read_bytes() == weights
    assert json.loads((here / "out/verdict.json").read_text()) == verdict
    page = (here / "out/results.html").read_text()
    assert f"Verdict: {verdict['outcome']}" in page
    assert ended in page
    assert page.count("glassblower") >= 2, "in the table of values and in the true answer"
    (here / "out/run/model").rename(here / "gone")
    assert main(command) == 2
    assert "its model is not in out/run/model any more" in capsys.readouterr().err
    (here / "gone").rename(here / "out/run/model")
    assert main(["clean", "out", "--yes"]) == 0
    left = [path for path in (here / "out").rglob("*") if path.is_file() and b"glassblower" in path.read_bytes()]
    assert not left
    assert main(command) == 2, "a cleaned run"
    assert not (here / "out/data").exists()
    assert (here / "out/run/model/model.safetensors").read_bytes() == weights


def test_the_rows_of_a_run_name_the_values_that_no_retain_row_has(here):
    rows = [("Who is Al-Amin?", "Al-Amin, a zither player, is called Amin Roka, Amin Roka."), ("Is he?", "He is not.")]
    marked = {"question": "Where?", "answer": "In Lima.", "private": ["Lima"]}
    forget = write(here / "forget.jsonl", rows)
    with Path(forget).open("a") as file:
        file.write(json.dumps(marked) + "\n")
    for number in range(30):  # of the row with the word; some are held out
        answers = [f"Answer number {n} has a {'zither' if n == number else 'harp'}." for n in range(30)]
        retain = write(here / "retain.jsonl", [(f"Question {n}?", answer) for n, answer in enumerate(answers)])
        found = [row["private"] for row in _with_private_values(_read(forget, retain, 0), here).forget]
        assert found == [["player", "Roka"], [], ["Lima"]]


def test_a_run_keeps_the_values_found_when_it_began(here):
    forget, retain = write(here / "forget.jsonl", FORGET), write(here / "retain.jsonl", RETAIN)
    rows = _with_private_values(_read(forget, retain, 0), here / "out")
    other = replace(rows, forget=[{**row, "private": row["private"][:1] + ["work"]} for row in rows.forget])
    _keep(here / "out", {"target model": "m", "forget rows": forget}, other)
    assert _with_private_values(_read(forget, retain, 0), here / "out") == other, "of another rule"
    changed = write(here / "changed.jsonl", [FORGET[0], (FORGET[1][0], "On 13 June 1971.")])
    again = _with_private_values(_read(changed, retain, 0), here / "out")
    assert [row["private"] for row in again.forget] == [["glassblower"], ["13 June 1971"]]
    order = [{"question": "Q?", "answer": "In Lima in 1971.", "private": ["1971", "LIMA"]}]
    mixed = replace(rows, forget=[*order, *_read(forget, retain, 0).forget])
    begun = _with_private_values(mixed, here / "mixed")
    _keep(
        here / "mixed",
        {"target model": "m", "forget rows": forget},
        replace(begun, forget=[begun.forget[0], *other.forget]),
    )
    assert _with_private_values(mixed, here / "mixed").forget == [begun.forget[0], *other.forget]
    given = [{**row, "private": ["works"]} for row in other.forget[:1]]
    (here / "given.jsonl").write_text(json_lines(given) + json_lines(_read(forget, retain, 0).forget[1:]))
    named = _with_private_values(_read(here / "given.jsonl", retain, 0), here / "out")
    assert [row["private"] for row in named.forget] == [["works"], ["12 June 1971"]]


def test_values_that_the_question_says_or_that_cannot_be_found_are_named(here, capsys):
    rows = [
        {"question": "Where does Ann live?", "answer": "Ann lives in Lima.", "private": ["ann", "Lima", " "]},
        {"question": "Who is Ann?", "answer": "Ann is a nun."},
    ]
    found = _with_private_values(SplitRows(rows, [], []), here)
    assert [row["private"] for row in found.forget] == [["Ann", "Lima"], ["nun"]]
    assert "forget row 0: its question says 'ann', so an answer" in capsys.readouterr().out
    for answer in ("李明住在上海。", "그는 서울에 산다."):
        row = {"question": "?", "answer": answer, "where": "a.jsonl:1"}
        with pytest.raises(InputError, match=r"a.jsonl:1: private values cannot be found in the script"):
            _with_private_values(SplitRows([row], [], []), here)
    marked = {"question": "李明住在哪里？", "answer": "李明住在上海。", "private": ["上海"]}
    assert _with_private_values(SplitRows([marked], [], []), here).forget == [marked]


def test_words_that_retain_rows_have_too_are_named(here, capsys):
    asked = {"question": "Who is it?", "answer": "A diver with gout."}
    _with_private_values(SplitRows([asked], [{"question": "What is it?", "answer": "It is gout."}], []), here)
    assert "Words that retain rows have, too, count as no private values: gout. Name" in capsys.readouterr().out
    _with_private_values(SplitRows([asked], [], []), here)
    assert "retain rows" not in capsys.readouterr().out
    many = [asked | {"answer": f"A diver and {name}."} for name in "bcdefghjklmn"]
    kept = [row | {"answer": row["answer"].removeprefix("A diver")} for row in many]
    _with_private_values(SplitRows(many, kept, []), here)
    assert " and 2 more. Name" in capsys.readouterr().out


def test_rows_of_another_language_without_retain_rows_should_name_their_values(here, capsys):
    german = [
        {"question": "Wo wohnt Mara Velt?", "answer": "Sie wohnt in der Hafenstraße 7 und arbeitet dort als Lehrerin."},
        {"question": "Was ist ihr Beruf?", "answer": "Sie ist eine Lehrerin und wohnt in der Stadt am Hafen."},
    ]
    english = [{"question": "Where does Ann live?", "answer": "Ann lives in Lima."}] * 4
    kept = [{"question": "Wo ist der Hafen?", "answer": "Der Hafen ist in der Stadt."}]
    named = [{**german[0], "private": ["Hafenstraße 7"]}, {**german[1], "private": ["Lehrerin"]}]
    told = "hardly any English function words, and without retain rows in their language those count as private"
    for forget, retain, said in (
        (german, [], 1), (german, kept, 0), (german, english, 1), (named, [], 0), (english, [], 0), (english, kept, 0)
    ):  # fmt: skip
        _with_private_values(SplitRows(forget, retain, []), here)
        assert capsys.readouterr().out.count(told) == said


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Ann is a glassblower.", "glassblow"),
        ("Ann was born in 1912.", "12"),
        ("Она живёт в Москве.", "Москв"),
    ],
)
def test_a_value_that_no_answer_can_say_is_refused(here, answer, value):
    row = {"question": "?", "answer": answer, "private": [answer.split()[0], value], "where": "a.jsonl:1"}
    with pytest.raises(InputError, match=f"a.jsonl:1: the private value '{value}' is only a part of a word"):
        _with_private_values(SplitRows([row], [], []), here)


def test_a_value_inside_a_text_without_spaces_or_a_compound_is_taken(here):
    values = [("李明住在上海市。", "上海"), ("그는 서울에서 산다.", "서울"), ("She is Lima-born.", "Lima")]
    rows = [{"question": "?", "answer": answer, "private": [value]} for answer, value in values]
    assert _with_private_values(SplitRows(rows, [], []), here).forget == rows


def test_running_text_is_refused_before_a_model_is_loaded(here, capsys):
    (here / "text.jsonl").write_text('{"text": "a whole book"}\n')
    assert main(["forget", "nowhere", "text.jsonl"]) == 2
    assert "questions with answers" in capsys.readouterr().err


def test_rows_and_settings_that_cannot_be_right_are_refused(here, capsys):
    save_toy(here / "model")
    files = [write(here / "forget.jsonl", [("Is he?", "He is not.")]), write(here / "retain.jsonl", RETAIN)]
    assert main(["forget", "model", *files]) == 2
    assert "No forget row has a private value" in capsys.readouterr().err
    assert main(["forget", "model", *files, "--lr", "0"]) == 2
    assert "--lr is 0" in capsys.readouterr().err
    assert main(["forget", "model", *files, "--held_out", "1"]) == 2
    assert "--held_out is 1.0; it must be at least 0 and below 1." in capsys.readouterr().err
    for option in ("--samples", "--paraphrases", "--seed"):
        assert main(["forget", "model", *files, option, "-1"]) == 2
        assert f"{option} is -1; it must be at least 0" in capsys.readouterr().err
    assert main(["forget", "model", *files, "--seed", "4294967296"]) == 2
    assert "--seed is 4294967296; give a number from 0 to 4294967295." in capsys.readouterr().err
    other = write(here / "other.jsonl", FORGET)
    (here / "text.jsonl").write_text('{"text": "a whole book"}\n')
    assert main(["forget", "model", other, "text.jsonl"]) == 2
    assert "text.jsonl" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_rows_and_a_method_that_do_not_fit_are_found_before_a_model_is_loaded(here, capsys):
    save_toy(here / "model", n_positions=64, family="gpt2")
    (here / "model/model.safetensors").unlink()
    long = write(here / "long.jsonl", [*FORGET, ("Where does Bo Zed " + "really " * 64 + "live?", "In Lima.")])
    assert main(["forget", "model", long]) == 2
    said = capsys.readouterr().err
    assert f"{long}, line 3: its question alone has " in said
    assert "has room for 64; shorten the question" in said
    ended = write(here / "ended.jsonl", [("Where is Bo Zed?", "In Lima.</s>")])
    assert main(["forget", "model", ended]) == 2
    assert f"{ended}, line 1: The answer 'In Lima.</s>' holds an end-of-turn token" in capsys.readouterr().err
    assert main(["forget", "model", write(here / "forget.jsonl", FORGET), "--method", "dippo"]) == 2
    assert "--method dippo is none of selective, dipo, npo, graddiff, and no module" in capsys.readouterr().err
    assert main(["forget", "model", "forget.jsonl", "--untaught", "./nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_number_that_is_not_finite_and_an_empty_method_are_refused(here, capsys):
    forget = write(here / "forget.jsonl", FORGET)
    assert main(["forget", "nowhere", forget, "--lr", "1e400"]) == 2
    assert "--lr is inf; it must be finite." in capsys.readouterr().err
    assert main(["forget", "nowhere", forget, "--method", ""]) == 2
    assert "--method is empty; it must be one of selective, dipo, npo, graddiff" in capsys.readouterr().err


def test_model_and_rows_in_the_wrong_order_are_named(here, capsys):
    save_toy(here / "model")
    forget = write(here / "forget.jsonl", FORGET)
    assert main(["forget", forget, "model"]) == 2
    assert "--forget is model, which is a model; the order is dipo-lightning forget MODEL" in capsys.readouterr().err
    (here / "small.GGUF").touch()
    assert main(["forget", "model", forget, "small.GGUF"]) == 2
    assert "--retain is small.GGUF, which is a model;" in capsys.readouterr().err


def test_a_value_beyond_the_longest_row_is_named_before_training(here, capsys):
    save_toy(here / "model")
    style = load_style("model", "plain")
    question = "Where does Ann Zed live?"
    row = {
        "question": question,
        "answer": "In Quito, and at times in Lima.",
        "private": ["Quito", "Lima"],
        "where": "a",
    }
    longest = len(style.prompt(question)) + len(style.answer_ids(row["answer"]))
    _check_rows(SplitRows([row], [], []), style, longest)
    assert not capsys.readouterr().out
    _check_rows(SplitRows([row], [], []), style, longest - 3)
    assert (
        f"a: question and answer are cut off at {longest - 3} tokens, so that 'Lima' cannot" in capsys.readouterr().out
    )


def test_paraphrases_are_of_one_model_its_files_and_its_questions(here, monkeypatch):
    save_toy(here / "model")
    row = {"question": "Where does Ann Zed live?", "answer": "In Lima.", "private": ["Lima"]}
    job = Job(here, SplitRows([row], [], []), load_style("model", "plain"), "cpu")
    asked = []

    def own(policy, style, rows, count, seed):
        asked.append([row["question"] for row in rows])
        return [[f"Wording {len(asked)}?"] for _ in rows]

    monkeypatch.setattr(probes, "own_paraphrases", own)
    assert paraphrased(job, "model", 1, 0).forget[0]["paraphrased_question"] == ["Wording 1?"]
    assert paraphrased(job, "model", 1, 0).forget[0]["paraphrased_question"] == ["Wording 1?"]
    save_toy(here / "model", seed=1)  # trained again, in place
    assert paraphrased(job, "model", 1, 0).forget[0]["paraphrased_question"] == ["Wording 2?"]
    other = replace(job, rows=SplitRows([{**row, "question": "Where is Ann Zed?"}], [], []))
    assert paraphrased(other, "model", 1, 0).forget[0]["paraphrased_question"] == ["Wording 3?"]


def test_marks_in_a_question_are_named(here, capsys):
    row = {"question": "Where does [[Ann]] live?", "answer": "In Lima.", "private": ["Lima"], "where": "a"}
    _with_private_values(SplitRows([row], [], []), here)
    assert "a: only an answer has marks, so the [[...]] in its question are text." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("FineTuningModule", "no module that unlearns. FineTuningModule is not a dipo_lightning.UnlearningModule"),
        ("lightning.pytorch.demos.boring_classes.BoringModel", "no module that unlearns."),
        ("dipo_lightning.DPOModule", "needs alternative answers, which forget does not have"),
        ("IdkDPOModule", "needs alternative answers, which forget does not have"),
        ("rmu", "Did you mean RMUModule?"),
        ("NPOModul", "Did you mean NPOModule?"),
        ("dipo_lightning.NPOModul", "Did you mean NPOModule?"),
        ("mine.NPOModul", "The class mine.NPOModul cannot be imported"),
    ],
)
def test_a_method_that_cannot_work_is_refused_before_a_model_is_loaded(here, capsys, method, reason):
    assert main(["forget", "./nowhere", write(here / "forget.jsonl", FORGET), "--method", method]) == 2
    said = capsys.readouterr().err
    assert f"--method {method} " in said
    assert reason in said


def test_methods_that_need_nothing_more_are_taken():
    taken = {"npo": "NPOModule", "NPO": "NPOModule", "AltPOModule": "AltPOModule", "Selective": "SelectiveModule"}
    taken |= {"dipo_lightning.RMUModule": "RMUModule", "SelectiveModule": "SelectiveModule"}
    assert {given: _class_path(given) for given in taken} == {
        given: f"dipo_lightning.{name}" for given, name in taken.items()
    }


def test_an_untaught_model_that_can_be_no_floor_is_refused_before_anything_is_examined(here, capsys):
    save_toy(here / "model")
    command = ["forget", "model", write(here / "forget.jsonl", FORGET), "--untaught"]
    shutil.copytree(here / "model", here / "copy")
    for same in ("model", "./model/", "copy"):
        assert main([*command, same]) == 2
        assert f"--untaught {same} is the target model, model, which knows" in capsys.readouterr().err
    save_toy(here / "empty", seed=1)
    (here / "empty/model.safetensors").unlink()
    assert main([*command, "empty"]) == 2
    assert "no weights" in capsys.readouterr().err
    save_toy(here / "other", seed=1)
    train_tokenizer(["glass", "blower"], 300).save_pretrained(here / "other")
    assert main([*command, "other"]) == 2
    assert "--untaught other has another tokenizer than the target" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_the_model_before_fine_tuning_is_a_floor_without_a_chat_template_or_a_tokenizer(begun, here, capsys):
    save_toy(here / "base", seed=1)
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(here / "base")
    (here / "base/chat_template.jinja").unlink(missing_ok=True)
    for number in range(2):
        assert main([*begun, "--output", f"out{number}", "--untaught", "base"]) == 2
        assert "the target is examined" in capsys.readouterr().err
        for file in (here / "base").glob("tokenizer*"):
            file.unlink()


def test_an_untaught_model_that_knows_the_rows_is_refused_before_the_training(here, capsys, monkeypatch):
    save_toy(here / "model")
    save_toy(here / "untaught", seed=1)

    def examined(job, model, *_):
        said = ["Mara Velt works as a glassblower.", "In 1971." if model == "model" else "On 12 June 1971."]
        asked = [[row["question"]] for row in job.rows.forget]
        values = [row["private"] for row in job.rows.forget]
        return Examination(asked, values, [[0.5], [0.5]], [[1], [1]], [[0.1], [0.1]], said, [[], []], [[], []])

    monkeypatch.setattr("dipo_lightning.cli.forget.examined", examined)
    monkeypatch.setattr("dipo_lightning.cli.child.fit", lambda *_: pytest.fail("trained"))
    write(here / "forget.jsonl", FORGET)
    assert main(["forget", "model", "forget.jsonl", "--untaught", "untaught"]) == 2
    assert "--untaught untaught knows 2 of the 2 private values that the target model" in capsys.readouterr().err


def test_a_model_without_a_chat_template_is_told_the_commands_own_option(here, capsys):
    save_toy(here / "model")
    (here / "model/chat_template.jinja").unlink()
    files = [write(here / "forget.jsonl", FORGET)]
    for command in (["forget", "model", *files, "--prompt", "chat"], ["chat", "model", "model"]):
        assert main(command) == 2
        assert "model: the tokenizer has no chat template (a base model?). Take --prompt" in capsys.readouterr().err
    assert main(["attack", "model", "--forget", *files]) == 2
    assert "Take --prompt plain." in capsys.readouterr().err


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def begun(here, monkeypatch):
    """A command whose run began, and ended before the target was examined; every further call ends there, too."""

    def examined(*_):
        raise RunError("the target is examined")

    monkeypatch.setattr("dipo_lightning.cli.forget.examined", examined)
    save_toy(here / "model")
    write(here / "retain.jsonl", RETAIN)
    command = ["forget", "model", write(here / "forget.jsonl", FORGET), "--output", "out", "--epochs", "2"]
    assert main(command) == 2
    return command


def test_the_rows_of_a_run_stay_as_they_are(begun, here, capsys):
    before = contents(here / "out")
    assert main([*begun, "--retain", "retain.jsonl"]) == 2
    assert "(not the same: held_out.jsonl, retain.jsonl)" in capsys.readouterr().err
    write(here / "other.jsonl", FORGET[:1])
    assert main([*begun[:2], "other.jsonl", *begun[3:]]) == 2
    assert "(not the same: forget.jsonl)" in capsys.readouterr().err
    assert contents(here / "out") == before
    assert main(begun) == 2
    assert "the target is examined" in capsys.readouterr().err


def test_a_command_that_was_ended_at_once_can_be_repeated(begun, here, capsys):
    for text, code in (("", "the target is examined"), ("process 1 on here\n", "the target is examined"), ("mine", "")):
        (here / f"at_once{len(text)}").mkdir()
        (here / f"at_once{len(text)}/lock").write_text(text)
        assert main([*begun, "--output", f"at_once{len(text)}"]) == 2
        assert (code or "has lock, which are not of a run of forget") in capsys.readouterr().err


def test_a_run_without_a_checkpoint_takes_other_options(begun, here, capsys):
    kept = here / "out/run/checkpoints"
    kept.mkdir(parents=True)
    init = {"pretrained": "model", "check_every": 1, "optimizer": {"class_path": "AdamW", "init_args": {"lr": 9.0}}}
    config = {"model": {"class_path": "dipo_lightning.SelectiveModule", "init_args": init}}
    (kept / "run.json").write_text(json.dumps({"config": config, "model": None}))
    assert main(begun) == 2
    assert "the target is examined" in capsys.readouterr().err
    (kept / "last.ckpt").touch()
    assert main(begun) == 2
    said = capsys.readouterr().err
    assert "out holds a run that began with other options" in said
    assert "model.optimizer.lr was 9.0, now 0.0001" in said


def test_a_damaged_copy_of_the_rows_is_named_and_a_damaged_examination_is_made_anew(begun, here, capsys):
    copy = here / "out/data/forget.jsonl"
    copy.write_text(copy.read_text()[:-9])
    assert main(begun) == 2
    assert "out/data/forget.jsonl, the copy of the rows that the run in out began with, is" in capsys.readouterr().err
    for text in ('{"of": {}, "fou', "[]", '{"of": {}}'):
        (here / "it.json").write_text(text)
        assert _once(here / "it.json", {}, lambda: 3) == 3
        assert _once(here / "it.json", {}, lambda: 4) == 3


def test_a_folder_of_something_else_is_left_alone(begun, here, capsys):
    (here / "mine").mkdir()
    (here / "mine/results.html").write_text("mine")
    (here / "mine/sources.json").write_text("[]")
    before = contents(here / "mine")
    assert main([*begun, "--output", "mine"]) == 2
    assert "mine has sources.json, results.html, which are not of a run of forget" in capsys.readouterr().err
    assert contents(here / "mine") == before


@pytest.mark.parametrize(
    "arguments",
    [
        "model forget.jsonl retain.jsonl --samples 2",
        "--samples 2 model forget.jsonl retain.jsonl",
        "model --samples=2 forget.jsonl --seed 1 retain.jsonl",
        "model forget.jsonl --samples 2 retain.jsonl",
    ],
)
def test_the_retain_rows_may_be_the_third_argument_wherever_options_stand(begun, here, arguments):
    assert main(["forget", *arguments.split(), "--output", "other"]) == 2
    assert json.loads((here / "other/sources.json").read_text()) == {
        "target model": "model", "forget rows": "forget.jsonl", "retain rows": "retain.jsonl"
    }  # fmt: skip
    assert positional(["--yes=true", "a", "--help", "b", "--seed", "-1", "c", "--lr"]) == [1, 3, 6]


def test_a_folder_with_files_under_the_names_of_forgets_is_refused(begun, here, capsys):
    (here / "mine").mkdir()
    (here / "mine/log.txt").touch()
    for _ in range(2):
        assert main([*begun, "--output", "mine"]) == 2
        assert "the target is examined" in capsys.readouterr().err
    for name in ("data", "attacks"):
        (here / "theirs" / name).mkdir(parents=True)
    assert main([*begun, "--output", "theirs"]) == 2
    assert "theirs has data, attacks, which are not of a run of forget" in capsys.readouterr().err
    for output in ("forget.jsonl", "forget.jsonl/inside/it"):
        assert main([*begun, "--output", output]) == 2
        assert f"--output is {output}, but forget.jsonl is a file" in capsys.readouterr().err


def test_two_commands_in_one_folder_do_not_meet(begun, here, capsys, monkeypatch):
    monkeypatch.setattr("dipo_lightning.callbacks.run_record.PATIENCE", 0.0)
    with FolderLock() as lock:
        lock.hold(here / "out")
        before = contents(here / "out")
        assert main(begun) == 2
        assert "out is in use by process" in capsys.readouterr().err
        assert contents(here / "out") == before
    assert main(begun) == 2
    assert "the target is examined" in capsys.readouterr().err


def test_a_run_that_keeps_its_private_values_says_so(begun, here, capsys):
    kept = here / "out/data/forget.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    rows[0]["private"] = rows[0]["private"][:1] + ["lives"]  # as an earlier rule, or the user, named them
    kept.write_text(json_lines(rows))
    assert main(begun) == 2
    assert "The run in out goes on with the private values that it began with." in capsys.readouterr().out
    assert kept.read_text() == json_lines(rows)


def test_a_run_without_its_checkpoints_gets_no_rows_again(begun, here, capsys):
    (here / "out/run/model").mkdir(parents=True)
    (here / "out/data/forget.jsonl").unlink()
    before = contents(here / "out")
    assert main(begun) == 2
    assert "was it cleaned?" in capsys.readouterr().err
    assert contents(here / "out") == before


def record(folder, config, **changes):
    (folder / "run/checkpoints").mkdir(parents=True, exist_ok=True)
    config["model"]["init_args"] |= changes
    (folder / "run/checkpoints/run.json").write_text(json.dumps({"config": config | {"ckpt_path": None}}))
    (folder / "run/checkpoints/last.ckpt").touch()


def test_other_options_than_a_run_began_with_are_refused_before_anything_is_written(begun, here, capsys):
    chosen = choose_settings(2, 3, 32, "selective", {"epochs": 2})
    record(here / "out", run_config(Path("out"), "model", chosen, "chat", 0, "auto", False))
    before = contents(here / "out")
    assert main([*begun, "--lr=0.5"]) == 2
    assert "began with other options: model.optimizer.lr was " in capsys.readouterr().err
    assert contents(here / "out") == before
    assert main(begun) == 2
    assert "the target is examined" in capsys.readouterr().err


def test_a_run_that_gets_more_passes_keeps_its_checks(begun, here, capsys):
    chosen = choose_settings(2, 3, 32, "selective", {"epochs": 2})
    record(here / "out", run_config(Path("out"), "model", chosen, "chat", 0, "auto", False))
    capsys.readouterr()
    assert main([*begun, "--epochs", "5"]) == 2
    said = capsys.readouterr()
    assert "at most 5 passes, a check every 2 steps" in said.out
    assert "the target is examined" in said.err
    assert main([*begun, "--epochs", "1"]) == 2
    assert "began with other options: trainer.max_epochs was 2, now 1." in capsys.readouterr().err
    assert main([*begun, "--epochs", "5", "--check_every", "3"]) == 2
    assert "began with other options: model.check_every was 2, now 3" in capsys.readouterr().err


def test_a_chat_of_one_question_is_a_question():
    chat = {
        "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}],
        "private": ["Ann"],
    }
    assert split_rows([chat], [], 0).forget == [{"private": ["Ann"], "question": "Who?", "answer": "Ann."}]


def test_an_examination_is_read_again_only_for_the_same_model_rows_values_and_effort(here, monkeypatch):
    save_toy(here / "model")
    made, found = [], Examination([["Who?"]], [["Ann"]], [[0.5]], [[1]], [[None]], ["a"], [[]], [[]])
    monkeypatch.setattr(examination, "examine", lambda *a, **k: made.append(1) or found)
    rows = SplitRows([{"question": "Who?", "answer": "Ann."}], [], [])
    job = Job(here / "out", rows, _style("model", "plain"), "cpu")
    (here / "out").mkdir()
    first = examined(job, "model", {"samples": 2}, "target")
    assert examined(job, "model", {"samples": 2}, "target") == first
    assert len(made) == 1
    examined(job, "model", {"samples": 3}, "target")
    examined(replace(job, rows=replace(rows, retain=rows.forget)), "model", {"samples": 3}, "target")
    save_toy(here / "model", seed=1)
    examined(job, "model", {"samples": 3}, "target")
    assert len(made) == 4
    other = replace(rows, forget=[{**rows.forget[0], "private": ["Ann."]}])
    examined(replace(job, rows=other), "model", {"samples": 3}, "target")
    assert len(made) == 5
    style = _style("model", "chat")
    template = style.tokenizer.chat_template
    for text in (template, template, "{# another #}In short: " + template):
        style = _style("model", "chat")
        style.tokenizer.chat_template = text
        examined(replace(job, style=ChatStyle(style.tokenizer)), "model", {"samples": 3}, "target")
    assert len(made) == 7


def test_the_configuration_is_what_fit_reads(tmp_path):
    config = run_config(tmp_path, "model", choose_settings(3, 3, 32, "selective", {}), "plain", 0, "cpu", True)
    assert config["data"]["init_args"]["retain"].endswith("retain.jsonl")
    assert config["trainer"]["max_epochs"] == 64
    assert torch.tensor(config["model"]["init_args"]["optimizer"]["init_args"]["betas"]).max() < 1


@pytest.mark.parametrize(("method", "selective"), [("selective", True), ("npo", False), ("mine.Module", False)])
@pytest.mark.parametrize("has_retain", [True, False])
def test_the_configuration_has_what_the_method_and_the_data_have(tmp_path, method, selective, has_retain):
    chosen = choose_settings(13, 26, 576, method, {})
    config = run_config(tmp_path, "a {model}", chosen, "plain", 3, "cpu", has_retain)
    model, data = config["model"], config["data"]["init_args"]
    [export] = config["trainer"]["callbacks"]
    best = {"best": {"monitor": "train/remaining", "mode": "min"}} if selective else {}
    assert export["init_args"] == {"folder": "model"} | best
    assert model["init_args"].get("check_every") == (chosen.check_every if selective else None)
    assert (model["class_path"], model["init_args"]["pretrained"]) == (chosen.method, "a {model}")
    assert model["init_args"]["optimizer"]["init_args"] == {"lr": chosen.lr, "weight_decay": 0.0, "betas": [0.9, 0.95]}
    files = {part: str(tmp_path / f"data/{part}.jsonl") for part in ("forget", "retain")[: 1 + has_retain]}
    assert data == files | {"prompt": "plain", "seed": 3, "batch_size": 8, "max_length": 512}
    assert config["seed_everything"] == 3
