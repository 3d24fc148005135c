"""Evaluation on one's own rows: every layout, the truth ratio where wrong answers are given, before and after."""

import json
from pathlib import Path

import pytest
import torch

from dipo_lightning.benchmarks.user_data.callback import MemorizationEvaluation
from dipo_lightning.benchmarks.user_data.data import evenly, question_rows, row_style
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.methods.gradient_ascent import GradDiffModule
from dipo_lightning.report.page import write_page
from tests.helpers.nested import nested
from tests.helpers.small_tofu import read, trainer
from tests.helpers.toys import save_toy, toy_tokenizer

RETAIN = [{"question": f"Where is {i}?", "answer": f"In the city of {i}."} for i in range(4)]
FORGET = [{"question": f"Who wrote {i}?", "answer": f"The author {i} wrote it."} for i in range(4)]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "The author."},
]
TEXT = "The author was born in Taipei, the mother is a teacher and the father a writer of fiction."
LAYOUTS = {
    "questions": FORGET,
    "completions": [{"prompt": row["question"], "completion": row["answer"]} for row in FORGET],
    "messages": [{"messages": CHAT}, {"messages": CHAT[1:]}],
    "text": [{"text": TEXT}, {"text": "The teacher."}],
    "two files": [FORGET[0], {"messages": CHAT}],  # one a file
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_toy(tmp_path_factory.mktemp("toy"))


def write(path: Path, rows: list) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def fit(tmp_path, model, forget, retain=RETAIN, prompt="chat", epochs=1, **options):
    half = len(forget) // 2 or 1
    files = [write(tmp_path / "forget1.jsonl", forget[:half]), write(tmp_path / "forget2.jsonl", forget[half:])]
    data = UnlearningDataModule(
        tokenizer=str(model),
        forget=files,
        retain=None if retain is None else write(tmp_path / "retain.jsonl", retain),
        prompt=prompt,
        batch_size=1,
        max_length=64,
    )
    module = GradDiffModule(str(model), optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    evaluation = MemorizationEvaluation(**nested(**({"max_new_tokens": 6, "text_tokens": 40} | options)))
    trainer(tmp_path, evaluation, max_epochs=epochs).fit(module, data)
    return read(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_measured_before_and_after(tmp_path, model, layout):
    forget = LAYOUTS[layout]
    before, after = fit(tmp_path, model, forget)
    assert before["format"] == "dipo-lightning/user_data/1"
    assert [row["index"] for row in after["sets"]["forget"]] == list(range(len(forget)))
    assert not before["skipped"]
    for name in ("forget", "retain"):
        for part in ("probability", "rouge", "exact_memorization", "extraction_strength", "min_k", "min_k_plus_plus"):
            assert before["aggregates"][f"{name}_{part}"] >= 0 or part == "min_k_plus_plus"
    # Gradient ascent makes the forget answers less likely, and these are the answers it trained on.
    assert after["aggregates"]["forget_probability"] < before["aggregates"]["forget_probability"]
    assert after["aggregates"]["forget_min_k"] > before["aggregates"]["forget_min_k"]
    assert 0 < before["aggregates"]["utility"] < 1 or before["aggregates"]["retain_rouge"] == 0
    assert before["provenance"]["data"]["forget"]["rows"] == len(forget)
    assert before["provenance"]["data"] == after["provenance"]["data"]


def test_a_model_that_never_knew_the_rows_gives_the_floors(tmp_path, model):
    fit(tmp_path, model, FORGET)
    [log] = {path.parent.parent for path in tmp_path.rglob("evaluations/user_data*.json")}
    page = write_page(log, tmp_path / "alone.html").read_text(encoding="utf-8")
    assert "to the level of a model that never knew the rows" in page
    assert "<th>retain model</th>" not in page
    (tmp_path / "second").mkdir()
    _, after = fit(tmp_path / "second", model, FORGET, retain_log=str(log))
    assert after["settings"]["retain_log"] == str(log)
    [again] = {path.parent.parent for path in (tmp_path / "second").rglob("evaluations/user_data*.json")}
    page = write_page(again, tmp_path / "with.html").read_text(encoding="utf-8")
    assert "<th>retain model</th>" in page
    (tmp_path / "third").mkdir()
    with pytest.raises(InputError, match="set 'forget'"):
        fit(tmp_path / "third", model, FORGET[:2], retain_log=str(log))


def test_the_scored_answer_is_the_trained_one(tmp_path, model):
    """The mean NLL of a conversation's last turn is the model's own loss on the data module's labels."""
    [document] = fit(tmp_path, model, LAYOUTS["messages"], every_n_epochs=None, at_end=False)
    files = [str(tmp_path / f"{name}.jsonl") for name in ("forget1", "retain")]
    data = UnlearningDataModule(str(model), *files, batch_size=1)
    data.setup("fit")
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model).eval()
    example = data.forget_examples[0]
    with torch.no_grad():
        loss = policy(input_ids=torch.tensor([example["input_ids"]]), labels=torch.tensor([example["labels"]])).loss
    assert document["sets"]["forget"][0]["nll"] == pytest.approx(loss.item(), rel=1e-5)
    assert document["sets"]["forget"][0]["question"] == "system: Be brief.\nuser: Who?"


def test_wrong_answers_give_the_truth_ratio_of_the_rows_that_have_them(tmp_path, model):
    others = {"paraphrased_answer": "Author 0 did.", "perturbed_answer": ["Nobody.", "It is 7."]}
    first = fit(tmp_path, model, [FORGET[0] | others, *FORGET[1:]])[0]
    rows = first["sets"]["forget"]
    assert len(rows[0]["wrong_nll"]) == 2
    assert rows[0]["correct_nll"] != rows[0]["nll"]
    log_ratio = rows[0]["correct_nll"] - sum(rows[0]["wrong_nll"]) / 2
    expected = torch.tensor(-abs(log_ratio)).exp().item()
    assert first["aggregates"]["forget_truth_ratio"] == pytest.approx(expected, rel=1e-4)
    assert "retain_truth_ratio" not in first["aggregates"]
    assert len(rows) == 4, "a row without wrong answers still counts in everything else"


def test_forget_only_warns_and_has_no_utility(tmp_path, model):
    with pytest.warns(UserWarning, match="No retain rows"):
        first = fit(tmp_path, model, FORGET, retain=None)[0]
    assert first["aggregates"]["utility"] is None
    assert "retain rows" in first["aggregates"]["utility_absent"]


def test_kinds_may_differ_between_the_sets_but_not_within_one(tmp_path, model):
    first = fit(tmp_path, model, LAYOUTS["text"], retain=RETAIN)[0]
    assert first["settings"]["prompt_style"]["forget"] != first["settings"]["prompt_style"]["retain"]
    with pytest.raises(InputError, match=r"forget2\.jsonl, line 1.*mixed among the forget rows"):
        fit(tmp_path, model, [FORGET[0], {"text": TEXT}])


def test_validate_returns_the_numbers(tmp_path, model, caplog):
    files = [write(tmp_path / f"{name}.jsonl", rows) for name, rows in (("forget", FORGET), ("retain", RETAIN))]
    data = UnlearningDataModule(str(model), *files, batch_size=1)
    run = trainer(tmp_path, MemorizationEvaluation(**nested(generate=False, max_retain_rows=2)))
    with caplog.at_level("INFO"):
        [numbers] = run.validate(GradDiffModule(str(model)), data, verbose=False)
    assert f"measures 2 of {len(RETAIN)} retain rows" in caplog.text
    assert f"of {len(FORGET)} forget rows" not in caplog.text
    [document] = read(tmp_path)
    assert numbers["user_data/forget_probability"] == pytest.approx(document["aggregates"]["forget_probability"])
    assert len(document["sets"]["retain"]) == 2
    assert "forget_rouge" not in document["aggregates"], "nothing was generated"
    assert document["sets"]["forget"][0]["generation"] is None


def test_a_data_module_without_rows_is_refused(tmp_path):
    from tests.helpers.small_tofu import ToyData, ToyModule

    with pytest.raises(InputError, match="UnlearningDataModule"):
        trainer(tmp_path, MemorizationEvaluation()).fit(ToyModule(), ToyData())


@pytest.mark.parametrize(
    ("options", "match"),
    [({"max_forget_rows": 0}, "max_forget_rows is 0"), ({"text_tokens": 1}, "at least 2"),
     ({"min_k_fraction": 0}, "min_k"), ({"on_missing": "drop"}, "skip or raise"),
     ({"truth_ratio": "harmonic"}, "harmonic")],
)  # fmt: skip
def test_options_are_checked(options, match):
    with pytest.raises(InputError, match=match):
        MemorizationEvaluation(**nested(**options))


def test_a_text_is_halved_between_words():
    tokenizer = toy_tokenizer()
    [row, glued, short] = question_rows([{"text": TEXT}, {"text": "汉字汉字"}, {"text": "a"}], tokenizer, 400)
    assert row["question"] + row["answer"] == TEXT
    assert row["answer"].startswith(" ")
    assert abs(len(row["question"]) - len(row["answer"])) < 12
    assert (glued["question"], glued["answer"]) == ("汉字", "汉字")
    assert short["question"] == ""
    [cut] = question_rows([{"text": TEXT}], tokenizer, 10)
    assert TEXT.startswith(cut["question"] + cut["answer"])
    assert len(cut["question"] + cut["answer"]) < len(TEXT)


def test_rows_are_spread_evenly():
    assert evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert evenly(list(range(3)), None) == [0, 1, 2]
    style = prompt_style("plain", toy_tokenizer())
    assert row_style([{"question": "", "answer": ""}], style) is style
    assert row_style([{"text": ""}], style).name == "text"


def test_a_trained_module_is_filed_under_its_own_steps_by_any_trainer(tmp_path, model):
    files = [write(tmp_path / f"{name}.jsonl", rows) for name, rows in (("forget", FORGET), ("retain", RETAIN))]
    data = UnlearningDataModule(str(model), *files, prompt="plain", batch_size=2, max_length=64)
    module = GradDiffModule(str(model), optimizer=lambda p: torch.optim.SGD(p, lr=0.05))

    def tested(run, module, **options):
        evaluation = MemorizationEvaluation(measuring={"generate": False})
        run.callbacks.append(evaluation)
        run.test(module, data, verbose=False, **options)
        run.callbacks.remove(evaluation)
        where = evaluation.last["provenance"]
        return where["epoch"], where["step"]

    assert tested(trainer(tmp_path), module) == (0, 0)
    for limit, position in ({"max_steps": 1, "max_epochs": -1}, (1, 1)), ({"max_epochs": 2}, (2, 4)):
        run = trainer(tmp_path, **limit)
        run.fit(module, data)
        run.save_checkpoint(tmp_path / "x.ckpt")
        loaded = GradDiffModule.load_from_checkpoint(tmp_path / "x.ckpt")
        assert tested(run, module) == tested(trainer(tmp_path), module) == position
        assert tested(trainer(tmp_path), loaded) == position
        assert tested(trainer(tmp_path), GradDiffModule(str(model)), ckpt_path=tmp_path / "x.ckpt") == position
