"""The attack command: every model, every row in a log that `score` recomputes, and nothing attacked is changed."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from dipo_lightning.benchmarks.muse.data import MUSEDataModule
from dipo_lightning.benchmarks.robustness import relearning, running
from dipo_lightning.benchmarks.robustness.attack import Attack, Condition, ask, measure_answers, plainly
from dipo_lightning.benchmarks.robustness.callback import RobustnessEvaluation
from dipo_lightning.benchmarks.robustness.running import build_attacks
from dipo_lightning.benchmarks.robustness.tables import markdown_table
from dipo_lightning.callbacks.run_record import FolderLock
from dipo_lightning.cli.main import main
from dipo_lightning.cli.score import score
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs import read_log
from dipo_lightning.evaluation.rows import Measuring
from dipo_lightning.metrics.functional.text import rouge_l
from dipo_lightning.models.loading import load_policy
from dipo_lightning.report.card import CardFacts, model_card
from dipo_lightning.report.page import write_page
from tests.helpers.small_muse import write_muse
from tests.helpers.small_tofu import ToyModule, read, trainer, write_tofu
from tests.helpers.toys import save_toy


class Shouting(Attack):
    """An attack of a user."""

    name = "shouting"

    def __init__(self, title="question in capitals"):
        self.title = title

    def conditions(self, subject):
        return [Condition("upper_case", self.title)]

    def measure(self, policy, subject, condition):
        asked = [ask(subject.style, row, row["question"].upper()) for row in subject.forget]
        return {condition.name: measure_answers(policy, subject, asked)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("attack")
    write_tofu(root / "data")
    for seed, name in enumerate(("unlearned", "retain", "target")):
        save_toy(root / name, seed=seed)
    return root


def options(root, *further):
    found = [str(root / "unlearned"), "--data", str(root / "data"), "--split", "forget10", "--prompt", "plain"]
    found += ["--max_new_tokens", "4", "--wordings.few_shot", "2", "--max_rows", "3"]
    found += ["--sampling.samples", "3", "--sampling.k", "[1,3]"]
    found += ["--relearning.lr", "0.01", "--relearning.batch_size", "2"]
    return ["attack", *found, *further]


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def output(folders):
    before = hashes(folders)
    models = ["--retain", str(folders / "retain"), "--target", str(folders / "target")]
    assert main(options(folders, "--output", str(folders / "out"), *models)) == 0
    after = hashes(folders)
    assert {name: after[name] for name in before} == before, "an attack changed a file of what it attacked"
    return folders / "out"


def test_every_attack_on_every_model_is_a_log_that_score_recomputes(output):
    found, log = score(output / "robustness.json"), read_log(output / "robustness.json")
    assert found["stored_aggregates_hold"] is True
    names = ["plain", "lower_case", "typing_errors", "answer_prefix", "role_play", "few_shot", "int8", "nf4"]
    names += ["prefix_25", "prefix_50", "prefix_75", *(f"relearn_forget_step{step}" for step in (0, 1, 2))]
    for model in ("unlearned", "retain", "target"):
        for name in names:
            rows = log.sets[f"{model}_{name}"]
            assert found[f"{model}_{name}_rouge"] == pytest.approx(sum(r["rouge_l_recall"] for r in rows) / len(rows))
            assert f"{model}_{name}_extraction_strength" in found
        rows = log.sets[f"{model}_samples"]
        assert found[f"{model}_samples_leak_at_3"] == sum(row["leaking"] > 0 for row in rows) / 3
    assert found["worst_rouge"] == max(
        value for name, value in found.items() if name.startswith("unlearned_") and name.endswith("_rouge")
    )
    gains = {
        model: found[f"{model}_relearn_forget_step2_probability"] - found[f"{model}_relearn_forget_step0_probability"]
        for model in ("unlearned", "retain")
    }
    assert found["relearn_forget_r_probability"] == pytest.approx(min(gains["retain"] / gains["unlearned"], 1))
    before, after = (found[f"unlearned_{name}_probability"] for name in ("plain", "nf4"))
    assert found["nf4_q_probability"] == pytest.approx(min((1 - after) / (1 - before), 1))
    content = json.loads((output / "robustness.json").read_text())
    content["aggregates"]["nf4_q_rouge"] = 0.123
    (output / "changed.json").write_text(json.dumps(content))
    assert list(score(output / "changed.json")["stored_aggregates_differ"]) == ["nf4_q_rouge"]
    (output / "changed.json").unlink()


def test_a_table_and_a_picture_of_each_attack_are_written(output):
    table = (output / "robustness.md").read_text()
    assert "| attack | unlearned | retain | target |" in table
    for title in ("plain question", "typing errors", "weights in nf4", "Q of weights in nf4", "leak@3 of 3 sampled"):
        assert f"| {title}" in table
    assert "relearning the forget rows, step 2" in table
    assert {path.stem for path in output.glob("*.png")} == {
        "wordings", "prefixes", "quantization", "sampling", "relearning"
    }  # fmt: skip


def test_a_killed_attack_goes_on_and_gives_the_same(folders, output, monkeypatch):
    whole = json.loads((output / "robustness.json").read_text())
    parts = sorted((output / "parts").iterdir())
    for path in parts[::2]:
        path.unlink()
    (output / "robustness.json").unlink()
    measured = []
    monkeypatch.setattr(running, "write_json", lambda path, content: (measured.append(path), write(path, content)))
    models = ["--retain", str(folders / "retain"), "--target", str(folders / "target")]
    assert main(options(folders, "--output", str(output), *models)) == 0
    assert {path for path in measured if path.parent.name == "parts" and path.exists()} == set(parts[::2])
    assert json.loads((output / "robustness.json").read_text()) == whole


def write(path, content):
    path.write_text(json.dumps(content))


def test_an_attack_killed_while_it_relearns_goes_on_at_the_step(folders, tmp_path, monkeypatch):
    chosen = options(folders, "--attacks", "[relearning]", "--relearning.max_steps", "4")
    assert main([*chosen, "--output", str(tmp_path / "whole")]) == 0
    steps, measure = [], relearning.measure_answers

    def cut_off(*args):
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(measure(*args))
        return steps[-1]

    monkeypatch.setattr(relearning, "measure_answers", cut_off)
    assert main([*chosen, "--output", str(tmp_path / "out")]) == 130
    parts = tmp_path / "out" / "parts"
    assert {path.stem for path in parts.iterdir()} == {
        "unlearned_plain", "unlearned_relearn_forget_step0", "unlearned_relearn_forget_step1"
    }  # fmt: skip
    steps.clear()
    assert main([*chosen, "--output", str(tmp_path / "out")]) == 0
    assert len(steps) == 2, "steps 0 and 1 were taken from before"
    assert {path.stem for path in parts.iterdir()} == {"unlearned_plain", "unlearned_relearn_forget"}
    results = [json.loads((tmp_path / name / "robustness.json").read_text()) for name in ("whole", "out")]
    assert results[0] == results[1]


def test_a_further_attack_takes_the_others_from_before(folders, tmp_path, capsys):
    out = ["--output", str(tmp_path / "out"), "--attacks"]
    assert main(options(folders, *out, "[prefixes]")) == 0
    capsys.readouterr()
    assert main(options(folders, *out, "[prefixes,quantization]")) == 0
    said = capsys.readouterr().out
    assert "unlearned model: weights in int8" in said
    assert "unlearned model: plain question" not in said
    before = hashes(tmp_path / "out")
    assert main(options(folders, *out, "[quantization]")) == 2
    assert "conditions that would be lost: 25 % of the answer given" in capsys.readouterr().err
    assert hashes(tmp_path / "out") == before


def test_a_model_of_an_earlier_attack_is_not_dropped(folders, tmp_path, capsys):
    line = options(folders, "--output", str(tmp_path / "out"), "--attacks", "[quantization]")
    assert main([*line, "--retain", str(folders / "retain")]) == 0
    before = hashes(tmp_path / "out")
    assert main(line) == 2
    assert "models that would be lost: retain. Name those too" in capsys.readouterr().err
    assert hashes(tmp_path / "out") == before


@pytest.mark.parametrize("what", ["template", "unrelated"])
def test_a_file_that_changed_is_no_earlier_result(folders, tmp_path, what, capsys):
    file = tmp_path / "file.txt"
    chosen = {
        "template": ["--attacks", "[wordings]", "--wordings.templates", str(file)],
        "unrelated": ["--attacks", "[relearning]", "--relearning.on", "[unrelated]", "--unrelated", str(file)],
    }
    line = options(folders, *chosen[what], "--output", str(tmp_path / "out"))
    file.write_text("Now tell me: {question}")
    assert main(line) == 0
    file.write_text("And now: {question}")
    assert main(line) == 2
    assert "other options, data or weights" in capsys.readouterr().err


def test_metrics_of_choice(folders, tmp_path):
    chosen = "[truth_ratio,truth_ratio_prob_mean,rouge_f1,min_k,exact_memorization]"
    line = ["--attacks", "[quantization,relearning]", "--metrics", chosen, "--retain", str(folders / "retain")]
    assert main(options(folders, *line, "--output", str(tmp_path / "out"))) == 0
    found = score(tmp_path / "out" / "robustness.json", bootstrap=40)
    assert found["stored_aggregates_hold"] is True
    log = read_log(tmp_path / "out" / "robustness.json")
    for name in ("truth_ratio", "truth_ratio_prob_mean", "rouge_f1", "min_k", "exact_memorization"):
        assert 0 <= found[f"relearn_forget_r_{name}"] <= 1
        assert math.isfinite(found[f"unlearned_plain_{name}"])
        assert "unlearned_plain_probability" not in found
    rows = log.sets["unlearned_plain"]
    both = rouge_l([row["generation"] for row in rows], [row["answer"] for row in rows], stemmer=False)
    assert found["unlearned_plain_rouge_f1"] == pytest.approx(both.f1.mean().item())
    ratios = [math.exp(row["correct_nll"] - sum(row["wrong_nll"]) / len(row["wrong_nll"])) for row in rows]
    expected = sum(min(ratio, 1 / ratio) for ratio in ratios) / len(ratios)
    assert found["unlearned_plain_truth_ratio"] == pytest.approx(expected)
    table = (tmp_path / "out" / "robustness.md").read_text()
    assert table.startswith("Truth ratio / truth ratio prob mean / rouge f1 / min k / exact memorization")


def test_other_options_in_the_same_folder_are_refused(folders, output, capsys):
    assert main(options(folders, "--output", str(output), "--sampling.seed", "5")) == 2
    assert "other options, data or weights" in capsys.readouterr().err


def test_a_model_that_never_knew_gains_as_much_as_itself(folders, tmp_path):
    chosen = ["--attacks", "[relearning]", "--retain", str(folders / "unlearned"), "--output", str(tmp_path / "out")]
    assert main(options(folders, *chosen)) == 0
    found = score(tmp_path / "out" / "robustness.json")
    for part in ("probability", "rouge", "extraction_strength"):
        assert found[f"relearn_forget_r_{part}"] == 1


def test_without_a_retain_model_r_is_absent_and_why(folders, tmp_path, capsys):
    assert main(options(folders, "--attacks", "[relearning]", "--output", str(tmp_path / "out"))) == 0
    assert "No retain model was given" in capsys.readouterr().out
    found = score(tmp_path / "out" / "robustness.json")
    assert found["relearn_forget_r_rouge"] is None
    assert "no retain model" in found["relearn_forget_r_rouge_absent"]


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--attacks", "[hypnosis]"], "attacks has 'hypnosis'; it may have wordings"),
        (["--relearning.fraction", "0"], "fraction is 0"),
        (["--sampling.k", "[5]"], "k has 5"),
        (["--max_rows", "0"], "max_rows is 0"),
        (["--wordings.templates", "/nowhere.txt"], "cannot be read"),
        (["--forget", "rows.jsonl"], "either data"),
        (["--further", '{"mine": "nowhere.Attack"}'], "further.mine"),
        (["--sampling.k", "[]"], "sampling.k is empty"),
        (["--quantization.formats", "[]"], "quantization has no condition to try"),
        (["--device", "gpu0"], "device is gpu0"),
        (["--metrics", "[bleu]"], "metrics has 'bleu'"),
        (["--max_new_tokens", "0"], "max_new_tokens is 0"),
    ],
)
def test_bad_input_gets_a_sentence(folders, tmp_path, further, message, capsys):
    assert main(options(folders, "--output", str(tmp_path / "out"), *further)) == 2
    assert message in capsys.readouterr().err


def test_attacks_of_a_user(folders, tmp_path):
    chosen = ["--attacks", "[]", "--further", f'{{"mine": "{__name__}.Shouting"}}', "--output", str(tmp_path / "out")]
    assert main(options(folders, *chosen)) == 0
    assert "unlearned_upper_case_rouge" in score(tmp_path / "out" / "robustness.json")
    with pytest.raises(InputError, match=r"further.mine: pathlib.Path is not a dipo_lightning.Attack"):
        build_attacks([], {"mine": "pathlib.Path"})


def test_an_attack_of_a_user_takes_options(folders, tmp_path, capsys):
    path = f"{__name__}.Shouting"
    line = options(folders, "--attacks", "[]", "--output", str(tmp_path / "out"), "--further")
    assert main([*line, json.dumps({"mine": {"class_path": path, "init_args": {"title": "in CAPITALS"}}})]) == 0
    assert "| in CAPITALS |" in capsys.readouterr().out
    assert main([*line, json.dumps({"mine": {"class_path": path, "init_args": {"titel": ""}}})]) == 2
    assert "further.mine" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [[], {}, {"other": []}, {"upper_case": [{"nll": 1.0}]}])
def test_rows_of_another_condition_are_refused(folders, tmp_path, rows, monkeypatch, capsys):
    monkeypatch.setattr(Shouting, "measure", lambda *_: rows)
    chosen = ["--attacks", "[]", "--further", json.dumps({"mine": f"{__name__}.Shouting"})]
    assert main(options(folders, *chosen, "--output", str(tmp_path / "out"))) == 2
    assert "must return a dictionary with the rows of upper_case" in capsys.readouterr().err


def test_a_user_s_own_rows(folders, tmp_path):
    rows = [{"question": f"Who is {i}?", "answer": f"The author {i}"} for i in range(3)]
    for name, some in (("forget", rows), ("kept", rows[1:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    args = ["attack", str(folders / "unlearned"), "--prompt", "plain", "--forget", str(tmp_path / "forget.jsonl")]
    args += ["--kept", str(tmp_path / "kept.jsonl"), "--attacks", "[wordings]", "--max_new_tokens", "3"]
    assert main([*args, "--output", str(tmp_path / "out")]) == 0
    assert "unlearned_few_shot_rouge" in score(tmp_path / "out" / "robustness.json")


def test_a_run_gives_its_model_and_data_and_its_page_and_card_a_section(folders, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "evaluations").mkdir(parents=True)
    save_toy(run / "model", seed=0)
    data = f"data:\n  class_path: dipo_lightning.TOFUDataModule\n  init_args: {{data: {folders / 'data'}, "
    (run / "config.yaml").write_text(data + "split: forget10, prompt: plain}\n")
    SummaryWriter(str(run)).close()
    args = ["attack", str(run), "--attacks", "[quantization]", "--max_new_tokens", "3", "--max_rows", "2"]
    assert main(args) == 0
    events = EventAccumulator(str(run)).Reload()
    assert {"robustness/worst_rouge", "robustness/int8_q_rouge"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["robustness/quantization"]
    assert (run / "attacks" / "robustness.json").exists()
    page = write_page(run).read_text()
    assert "Attacks, and what they recover" in page
    card = model_card(CardFacts(name="x", base="y", method="DiPOModule", run=run))
    assert "### Attacks, and what they recover" in card
    assert "| weights in int8 | " in card
    before = hashes(run)
    args[3] = "[wordings]"
    assert main([*args, "--output", str(tmp_path / "elsewhere")]) == 2
    assert "would be lost: weights in int8" in capsys.readouterr().err
    assert hashes(run) == before
    args[3] = "[wordings,quantization]"
    assert main([*args, "--output", str(tmp_path / "elsewhere")]) == 0


def test_a_run_on_own_rows_gives_those_that_were_unlearned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"Who is {i}?", "a": f"The author {i}"} for i in range(4)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("run/evaluations").mkdir(parents=True)
    save_toy(Path("run/model"))
    init = "{forget: rows.jsonl, columns: {question: q, answer: a}, max_forget_rows: 3, prompt: plain, tokenizer: x}"
    Path("run/config.yaml").write_text(
        f"data:\n  class_path: dipo_lightning.UnlearningDataModule\n  init_args: {init}\n"
    )
    assert main(["attack", "run", "--attacks", "[prefixes]", "--prefixes.shares", "[50]", "--max_new_tokens", "2"]) == 0
    log = read_log("run/attacks/robustness.json")
    assert [row["question"] for row in log.sets["unlearned_plain"]] == ["Who is 0?", "Who is 1?", "Who is 2?"]


def test_a_run_of_forget_gives_its_model_and_its_rows(tmp_path, capsys):
    folder = tmp_path / "moved"
    save_toy(folder / "run/model")
    save_toy(folder / "run/model.partial")  # of a killed export
    (folder / "sources.json").write_text('{"target model": "target", "forget rows": "mine.jsonl"}')
    init = "{forget: out/data/forget.jsonl, prompt: plain, tokenizer: x}"
    data = f"data:\n  class_path: dipo_lightning.UnlearningDataModule\n  init_args: {init}\n"
    (folder / "run/config.yaml").write_text(data)
    args = ["attack", str(folder), "--attacks", "[prefixes]", "--prefixes.shares", "[50]", "--max_new_tokens", "2"]
    assert main(args) == 2
    assert "moved/data/forget.jsonl" in capsys.readouterr().err, "the rows were cleaned away"
    (folder / "data").mkdir()
    (folder / "data/forget.jsonl").write_text('{"question": "Who is it?", "answer": "The author"}\n')
    (tmp_path / "file").touch()
    assert main([*args, "--output", str(tmp_path / "file/attacks")]) == 2
    assert "file is not a folder that you may write to" in capsys.readouterr().err
    with FolderLock() as lock:
        lock.hold(folder / "attacks")
        assert main(args) == 2
        assert "attacks is in use by process" in capsys.readouterr().err
    assert main(args) == 0
    log = read_log(folder / "attacks/robustness.json")
    assert [row["question"] for row in log.sets["unlearned_plain"]] == ["Who is it?"]


def test_a_run_on_muse_is_asked_as_the_callback_asks_it(tmp_path):
    corpus = write_muse(tmp_path / "news")
    run = tmp_path / "run"
    (run / "evaluations").mkdir(parents=True)
    save_toy(run / "model")
    init = f"{{data: {corpus}, tokenizer: {run / 'model'}}}"
    (run / "config.yaml").write_text(f"data:\n  class_path: dipo_lightning.MUSEDataModule\n  init_args: {init}\n")
    names = "[probability,rouge,rouge_f1]"
    assert main(["attack", str(run), "--attacks", "[prefixes]", "--metrics", names, "--max_new_tokens", "6"]) == 0
    given = RobustnessEvaluation(
        attacks=("prefixes",),
        attack_metrics=("probability", "rouge", "rouge_f1"),
        measuring=Measuring(max_new_tokens=6),
    )
    module = ToyModule()
    module.policy = load_policy(str(run / "model"))
    data = MUSEDataModule(str(run / "model"), data=str(corpus))
    trainer(tmp_path / "test", given).test(module, datamodule=data, verbose=False)
    results, [document] = json.loads((run / "attacks" / "robustness.json").read_text()), read(tmp_path / "test")
    assert results["settings"]["prompt_style"] == document["settings"]["prompt_style"]
    for name, rows in document["sets"].items():
        for row, other in zip(rows, results["sets"][name], strict=True):
            assert (row["question"], row["generation"]) == (other["question"], other["generation"])
            assert row["nll"] == pytest.approx(other["nll"], rel=1e-5)
    assert document["aggregates"]["unlearned_plain_rouge_f1"] is not None
    [asked, *_] = plainly(given.subject)
    assert given.subject.style.tokenizer.decode(asked.prompt, skip_special_tokens=True) == "Question: Norway?\nAnswer: "


def test_a_run_with_several_models_asks_for_one(tmp_path, capsys):
    (tmp_path / "run" / "evaluations").mkdir(parents=True)
    for name in ("best", "model"):
        save_toy(tmp_path / "run" / name)
    assert main(["attack", str(tmp_path / "run")]) == 2
    assert "several models; give one" in capsys.readouterr().err


def test_a_model_that_is_missing_or_reads_other_tokens_is_refused_before_anything_is_done(folders, tmp_path, capsys):
    out = ["--output", str(tmp_path / "out")]
    assert main(options(folders, *out, "--retain", str(tmp_path / "nowhere"))) == 2
    assert "There is no model" in capsys.readouterr().err
    save_toy(other := tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None  # it does not begin with a BOS any more
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert main(options(folders, *out, "--target", str(other))) == 2
    assert "has another tokenizer or chat template" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_model_says_what_to_do(tmp_path, capsys):
    (tmp_path / "run" / "evaluations").mkdir(parents=True)
    assert main(["attack", str(tmp_path / "run")]) == 2
    assert "export" in capsys.readouterr().err


def test_the_table_of_a_log_is_made_from_the_log_alone(output):
    content = json.loads((output / "robustness.json").read_text())
    assert markdown_table(content) == Path(output / "robustness.md").read_text().strip()
