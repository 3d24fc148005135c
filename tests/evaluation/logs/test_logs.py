"""Readers of the three formats, comparison of two logs, and scoring of one."""

from __future__ import annotations

import copy
import json

import pytest

from dipo_lightning.benchmarks.tofu import TOFU
from dipo_lightning.cli.score import score
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs import EvaluationLog, check_comparable, read_log
from tests.helpers import synthetic
from tests.helpers.aggregate import tofu
from tests.helpers.synthetic import DATA, expected, make_sets

FORMATS = ("native", "authors", "ou")


def load(name):
    return json.loads((DATA / f"{name}.json").read_text())


def write(folder, content):
    path = folder / "log.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("variant", ["geometric", "arithmetic", "open_unlearning"])
def test_all_formats_hold_the_same_rows_and_give_the_same_numbers(name, variant):
    sets = make_sets(1, True)
    direct = tofu(sets, make_sets(2, False), variant)
    found = score(DATA / f"target_{name}.json", DATA / f"retain_{name}.json", variant)
    for key in [*expected(sets), "forget_quality"]:
        assert found[key] == pytest.approx(direct[key], rel=1e-9), key
    for row, read in zip(sets["forget"], read_log(DATA / f"target_{name}.json").sets["forget"], strict=True):
        for key in ("nll", "correct_nll", "wrong_nll", "rouge_l_recall", "generation", "answer"):
            assert read[key] == row[key]


def test_what_open_unlearning_stored_is_reproduced():
    log = read_log(DATA / "target_ou.json")
    found = score(DATA / "target_ou.json", DATA / "retain_ou.json", "open_unlearning")
    assert found["model_utility"] == pytest.approx(log.aggregates["model_utility"], rel=1e-6)
    assert found["forget_truth_ratio"] == pytest.approx(log.aggregates["forget_truth_ratio"], rel=1e-6)
    assert found["forget_min_k_auc"] == pytest.approx(log.aggregates["mia_min_k"])
    for key in ("exact_memorization", "extraction_strength"):
        mean = sum(row[key] for row in make_sets(1, True)["forget"]) / 12
        assert found[f"forget_{key}"] == pytest.approx(mean)
    assert found["privleak"] is not None


@pytest.mark.filterwarnings("ignore:.*as the pad token:UserWarning")  # the logs are of a Llama-3 model
@pytest.mark.parametrize(
    ("log", "reference"), [("ou", "native"), ("native", "ou"), ("authors", "ou"), ("ou", "authors")]
)
def test_formats_may_be_mixed(log, reference):
    found = score(DATA / f"target_{log}.json", DATA / f"retain_{reference}.json")
    direct = tofu(make_sets(1, True), make_sets(2, False))
    assert found["forget_quality"] == pytest.approx(direct["forget_quality"])


def test_prompt_styles_are_compared_across_formats_by_name(tmp_path):
    with pytest.raises(InputError, match="prompt_style is 'plain' in the log and 'llama2' in the reference"):
        score(DATA / "target_native.json", DATA / "retain_authors.json")
    content = load("target_native")
    content["settings"]["prompt_style"] = "llama2-0123456789ab"
    assert score(write(tmp_path, content), DATA / "retain_authors.json")["forget_quality"]["n"] == 12
    log, reference = native_pair()
    log.settings["prompt_style"], reference.settings["prompt_style"] = "plain-0123456789ab", "plain-0123456789ac"
    with pytest.raises(InputError, match="prompt_style"):
        check_comparable(log, reference, TOFU())


def test_ready_ratios_of_a_short_open_unlearning_log_are_r_and_not_its_inverse(tmp_path):
    content = load("retain_ou")
    short = write(tmp_path, {"forget_truth_ratio": content["forget_truth_ratio"]})
    found = score(DATA / "target_ou.json", short, "open_unlearning")
    whole = score(DATA / "target_ou.json", DATA / "retain_ou.json", "open_unlearning")
    assert found["forget_quality"] == whole["forget_quality"]
    with pytest.raises(InputError, match="open_unlearning"):
        score(DATA / "target_ou.json", short, "geometric")


def test_open_unlearning_lists_and_missing_values(tmp_path):
    content = load("target_ou")
    table = content["forget_Q_A_PARA_Prob"]["value_by_index"]
    loss = table["3"]["avg_loss"]
    table["3"]["avg_loss"] = [loss - 0.5, loss + 0.5]
    content["forget_Q_A_Prob"]["value_by_index"]["5"] = {"prob": None, "avg_loss": None}
    found = score(write(tmp_path, content))
    assert found["unscored_rows"] == {"forget": [5]}
    assert read_log(tmp_path / "log.json").sets["forget"][3]["correct_nll"] == pytest.approx(loss)


def test_prompt_style_is_known_where_the_texts_show_it(tmp_path):
    assert read_log(DATA / "target_authors.json").settings == {"prompt_style": "llama2"}
    content = load("target_authors")
    for table in content.values():
        for texts in table["generated_text"].values():
            texts[0] = texts[0].replace("[INST] ", "Question: ").replace(" [/INST]", "\nAnswer: ")
    log = read_log(write(tmp_path, content))
    assert log.settings == {"prompt_style": "plain"}
    assert log.sets["forget"][0]["question"] == make_sets(1, True)["forget"][0]["question"]


def test_authors_answer_is_the_correct_one_where_there_is_no_paraphrase(tmp_path):
    content = load("target_authors")
    whole = score(DATA / "target_authors.json")
    for key in ("eval_real_author_wo_options.json", "eval_real_world_wo_options.json"):
        del content[key]["avg_paraphrased_loss"]
    assert score(write(tmp_path, content)) == whole


BROKEN = {
    "empty": ("", "empty"),
    "text": ("hello", "not JSON"),
    "list": ([1, 2], "JSON object"),
    "unknown": ({"loss": [1.0]}, "unknown format.*loss"),
    "version": ({"format": "dipo-lightning/tofu/9", "sets": {}}, "unknown format 'dipo-lightning/tofu/9'"),
    "no sets": ({"format": "dipo-lightning/tofu/1", "settings": {}}, "'sets'"),
    "no settings": ({"format": "dipo-lightning/tofu/1", "sets": {}}, "'settings'"),
    "no rows": ({"forget_Q_A_Prob": {"agg_value": 0.5}}, "no metric has values by row"),
    "summary": ({"forget_Q_A_Prob": 0.9, "forget_quality": 1e-21}, "a summary, with one number.*the TOFU_EVAL.json"),
    "MUSE's summary": ({"forget_knowmem_ROUGE": 0.5}, "a summary, with one number.*MUSE_EVAL.json"),
    "authors": ({"eval_log.json": {"avg_gt_loss": {"0": 1.0}}}, "average_perturb_loss"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_logs_say_what_is_wrong_and_where(case, tmp_path):
    content, message = BROKEN[case]
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message) as error:
        read_log(path)
    assert str(path) in str(error.value)


def test_lists_in_place_of_dictionaries(tmp_path):
    set_keys = {"avg_gt_loss": [0.1, 0.2], "average_perturb_loss": [[1.0, 2.0], [1.5, 1.0]]}
    set_keys |= {"avg_paraphrased_loss": [0.5, 0.6], "rougeL_recall": [1.0, 0.5]}
    found = score(write(tmp_path, {"eval_log_forget.json": set_keys}))
    assert found["forget_probability"] == pytest.approx(0.861784, abs=1e-6)
    assert found["forget_rouge"] == 0.75
    assert found["forget_truth_ratio"] == pytest.approx(0.444963, abs=1e-6)
    set_keys["rougeL_recall"].pop()
    with pytest.raises(InputError, match="rougeL_recall has other rows than avg_gt_loss \\(1 and 2\\)"):
        read_log(write(tmp_path, {"eval_log_forget.json": set_keys}))


def test_lists_and_dictionaries_of_the_same_rows_are_the_same_log(tmp_path):
    content = load("target_authors")
    as_lists = {key: {name: list(column.values()) for name, column in table.items()} for key, table in content.items()}
    as_lists["eval_log.json"]["bleu"] = [0.5]
    lists, dictionaries = read_log(write(tmp_path, as_lists)), read_log(DATA / "target_authors.json")
    assert lists.sets == dictionaries.sets
    assert lists.settings == dictionaries.settings


def test_open_unlearnings_log_of_muse(tmp_path):
    example = {"forget_knowmem_ROUGE": {"agg_value": 0.5, "value_by_index": {"0": {"rougeL_f1": 0.5}}}}
    found = score(write(tmp_path, example))
    assert (found["knowmem_forget"], found["verbmem"], found["knowmem_retain"]) == (0.5, None, None)
    texts = {"input": "Once", "ground_truth": "upon a time", "generation": "upon"}
    example["forget_verbmem_ROUGE"] = {"agg_value": 0.25, "value_by_index": {"7": {"rougeL_f1": 0.25} | texts}}
    samples = {"forget": [1.0, 2.0, 3.0], "holdout": [1.5, 2.5]}
    example["mia_min_k"] = {"agg_value": 0.5} | {
        name: {"value_by_index": {str(i): {"score": value} for i, value in enumerate(values)}}
        for name, values in samples.items()
    }
    for name in ("mia_loss", "mia_zlib", "mia_min_k_plus_plus", "mia_gradnorm", "mia_reference"):
        example[name] = example["mia_min_k"]
    for name, value in (("exact_memorization", 0.75), ("extraction_strength", 0.5)):
        example[name] = {"agg_value": value, "value_by_index": {"7": {"score": value}}}
    log = read_log(write(tmp_path, example))
    memory = {"exact_memorization": 0.75, "extraction_strength": 0.5}
    assert log.sets["verbmem"] == [
        {"index": 7, "rouge": 0.25, "prompt": "Once", "answer": "upon a time", "generation": "upon"} | memory
    ]
    found = score(tmp_path / "log.json", auc_retrain=0.4)
    assert found["privleak_auc"] == pytest.approx(3 / 6)  # P(holdout < forget) over the six pairs
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm", "reference"):
        assert found[f"forget_{attack}_auc"] == pytest.approx(3 / 6)
    assert (found["verbmem_exact_memorization"], found["verbmem_extraction_strength"]) == (0.75, 0.5)
    assert found["privleak"] == pytest.approx(25)
    with pytest.raises(InputError, match="one is of MUSE"):
        score(tmp_path / "log.json", DATA / "retain_ou.json")


def test_rouge_of_other_answers_in_open_unlearnings_log(tmp_path):
    content = load("target_ou")
    rows = content["forget_Q_A_ROUGE"]["value_by_index"]
    content["forget_Q_A_PARA_ROUGE"] = {"agg_value": 0, "value_by_index": {i: {"rougeL_recall": 0.5} for i in rows}}
    wrong = {i: {"rougeL_recall": [0.2, int(i) / 100]} for i in rows}
    content["forget_Q_A_PERT_ROUGE"] = {"agg_value": 0, "value_by_index": wrong}
    found = score(write(tmp_path, content))
    assert found["forget_paraphrased_rouge"] == 0.5
    expected = sum(0.1 + int(i) / 200 for i in rows) / len(rows)
    assert found["forget_perturbed_rouge"] == pytest.approx(expected)
    assert "forget_perturbed_rouge" not in score(DATA / "target_ou.json")


def test_metrics_of_forks_do_not_make_a_log_unreadable(tmp_path):
    whole = score(DATA / "target_ou.json")
    content = load("target_ou")
    content["forget_Q_A_gibberish"] = {"agg_value": 1.0, "value_by_index": {"row one": {"score": 1}, "x": None}}
    content["wmdp"] = {"agg_value": 0.3, "value_by_index": [1, 2]}
    for name, metric in content.items():
        if name.startswith("forget_") and isinstance(metric.get("value_by_index"), dict):
            metric["value_by_index"] = {
                f"{key}.0" if key.isdigit() else key: value for key, value in metric["value_by_index"].items()
            }
    assert score(write(tmp_path, content)) == whole
    for name in ("forget_Q_A_Prob", "forget_Q_A_PARA_Prob", "forget_truth_ratio"):
        content[name]["value_by_index"]["5.0"] = None
    assert score(write(tmp_path, content))["unscored_rows"] == {"forget": [5]}


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_log(tmp_path / "absent.json")
    (tmp_path / "weights.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a JSON file"):
        read_log(tmp_path / "weights.json")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_a_log_that_was_cut_off_is_called_that(name, part, tmp_path):
    text = (DATA / f"target_{name}.json").read_text()
    with pytest.raises(InputError, match="cut off"):
        read_log(write(tmp_path, text[: int(part * len(text))]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sets: sets["forget"][2].pop("nll"), "'forget', row 2 has no nll"),
        (lambda sets: sets["forget"][2].update(nll="0.5"), "row 2: nll should be a number"),
        (lambda sets: sets["forget"][2].update(wrong_nll=[1, "a"]), "row 2: wrong_nll should be a list"),
        (lambda sets: sets["forget"][2].update(question=5), "row 2: question should be a text or null, got 5"),
        (lambda sets: sets["retain"][2].update(rouge_l_recall=-0.1), "'retain', row 2: .* should not be negative"),
        (lambda sets: sets["forget"][2].update(index=1), "row 1 occurs twice"),
        (lambda sets: sets["forget"][2].update(index=True), "row number 2: `index` must be an integer"),
        (lambda sets: sets.update(forgotten=[]), "unknown sets forgotten"),
        (lambda sets: sets.update(forget={"0": {}}), "'forget' should be a list of rows"),
    ],
)
def test_broken_rows_of_own_logs(change, message, tmp_path):
    content = load("target_native")
    change(content["sets"])
    with pytest.raises(InputError, match=message):
        read_log(write(tmp_path, content))


def test_broken_tables_of_foreign_logs(tmp_path):
    content = load("target_authors")
    del content["eval_log_forget.json"]["rougeL_recall"]["4"]
    with pytest.raises(InputError, match="rougeL_recall has other rows"):
        read_log(write(tmp_path, content))
    content = load("target_ou")
    del content["forget_Q_A_ROUGE"]["value_by_index"]["4"]
    with pytest.raises(InputError, match="forget_Q_A_ROUGE: 11"):
        read_log(write(tmp_path, content))
    content["forget_Q_A_ROUGE"]["value_by_index"] = {"a": {}}
    with pytest.raises(InputError, match="keyed by row number"):
        read_log(write(tmp_path, content))


def native_pair():
    def log(seed):
        content = synthetic.native(make_sets(seed, True))
        return EvaluationLog(content["format"], content["settings"], content["sets"])

    return log(1), log(2)


def test_the_same_rows_and_settings_may_be_compared():
    log, reference = native_pair()
    check_comparable(log, reference, TOFU())
    del reference.settings["prompt_style"]  # not stated is not another
    check_comparable(log, reference, TOFU())


@pytest.mark.parametrize(
    ("setting", "value"), [("split", "forget05"), ("truth_ratio", "arithmetic"), ("prompt_style", "chat")]
)
def test_other_settings_are_refused_by_name(setting, value):
    log, reference = native_pair()
    reference.settings[setting] = value
    with pytest.raises(InputError, match=f"{setting} is .* in the log and '{value}' in the reference"):
        check_comparable(log, reference, TOFU())


def test_other_counts_rows_and_questions_are_refused():
    log, reference = native_pair()
    short = copy.deepcopy(reference)
    short.sets["forget"].pop()
    with pytest.raises(InputError, match="12 rows in the log and 11 in the reference"):
        check_comparable(log, short, TOFU())
    other = copy.deepcopy(reference)
    other.sets["forget"][-1]["index"] = 30
    with pytest.raises(InputError, match=r"other rows: \[11, 30\]"):
        check_comparable(log, other, TOFU())
    reference.sets["forget"][3]["question"] = "Where is the harbour?"
    with pytest.raises(InputError, match="row 3, asks different questions"):
        check_comparable(log, reference, TOFU())
    muse = EvaluationLog("dipo-lightning/muse/1", {}, {})
    with pytest.raises(InputError, match="the other of MUSE"):
        check_comparable(log, muse, TOFU())


def test_questions_are_compared_across_formats(tmp_path):
    content = load("retain_ou")
    texts = content["forget_Q_A_ROUGE"]["value_by_index"]
    texts["2"]["input"], texts["3"]["input"] = texts["3"]["input"], texts["2"]["input"]
    with pytest.raises(InputError, match="row 2, asks different questions"):
        score(DATA / "target_native.json", write(tmp_path, content))


def test_a_skipped_row_counts_as_the_same_row(tmp_path):
    content = load("target_native")
    row = content["sets"]["forget"].pop(4)
    content["skipped"] = {"forget": [{"index": row["index"], "reason": "the answer has no tokens"}]}
    found = score(write(tmp_path, content), DATA / "retain_native.json")
    assert found["forget_quality"]["n"] == 11
    assert found["unscored_rows"] == {"forget": [4]}
    assert found["stored_aggregates_hold"] is False


def test_stored_aggregates_are_checked(tmp_path):
    assert score(DATA / "target_native.json")["stored_aggregates_hold"] is True
    # Asked for another variant, the log is still judged by its own.
    assert score(DATA / "target_native.json", truth_ratio="arithmetic")["stored_aggregates_hold"] is True
    content = load("target_native")
    content["aggregates"]["retain_rouge"] += 1e-4
    found = score(write(tmp_path, content))
    assert found["stored_aggregates_hold"] is False
    assert list(found["stored_aggregates_differ"]) == ["retain_rouge"]
    content["aggregates"] = {}
    assert score(write(tmp_path, content))["stored_aggregates_hold"] is None
    assert "stored_aggregates_hold" not in score(DATA / "target_ou.json")


def test_stored_forget_quality_is_checked_where_a_reference_is_at_hand(tmp_path):
    content = load("target_native")
    truth = score(DATA / "target_native.json", DATA / "retain_native.json")["forget_quality"]
    content["aggregates"]["forget_quality"] = truth
    assert score(write(tmp_path, content), DATA / "retain_native.json")["stored_aggregates_hold"] is True
    content["aggregates"]["forget_quality"] = truth | {"p": 0.99}
    assert score(write(tmp_path, content))["stored_aggregates_hold"] is True
    found = score(tmp_path / "log.json", DATA / "retain_native.json")
    assert list(found["stored_aggregates_differ"]) == ["forget_quality"]


def test_a_byte_order_mark_and_one_wrong_answer_without_a_list(tmp_path):
    content = {"avg_gt_loss": [0.1, 0.2], "average_perturb_loss": [1.0, None], "avg_paraphrased_loss": [0.5, 0.6]}
    path = tmp_path / "eval_log_aggregated.json"
    path.write_text(json.dumps({"eval_log_forget.json": content}), encoding="utf-8-sig")
    rows = read_log(path).sets["forget"]
    assert [row["wrong_nll"] for row in rows] == [[1.0], [None]]


@pytest.mark.parametrize("value", ["0.1", [0.1], {"mean": 0.1}, True])
def test_a_number_of_a_foreign_log_that_is_none_is_named(tmp_path, value):
    path = tmp_path / "eval_log_aggregated.json"
    path.write_text(json.dumps({"eval_log_forget.json": {"avg_gt_loss": [value], "average_perturb_loss": [[1.0]]}}))
    with pytest.raises(InputError, match="set 'forget', row 0: nll should be a number or null, got"):
        read_log(path)


@pytest.mark.parametrize("value", [5, [1, 2, 3], ["Who?", None, "She."], "Who?"])
def test_texts_of_the_authors_log_that_are_none_are_named(tmp_path, value):
    content = load("target_authors")
    content["eval_log.json"]["generated_text"]["4"] = value
    with pytest.raises(InputError, match=r"'eval_log.json': generated_text, row 4: should be a list of texts, got"):
        read_log(write(tmp_path, content))


def test_values_of_the_wrong_kind_in_open_unlearnings_log_are_named(tmp_path):
    content = load("target_ou")
    rows = content["forget_Q_A_ROUGE"]["value_by_index"]
    rows["3"]["input"] = ["Who?"]
    with pytest.raises(InputError, match=r"set 'forget', row 3: question should be a text or null, got \['Who\?'\]"):
        read_log(write(tmp_path, content))
    content = load("target_ou")
    other = {index: {"rougeL_recall": ["a", "b"]} for index in rows}
    content["forget_Q_A_PARA_ROUGE"] = {"agg_value": 0, "value_by_index": other}
    with pytest.raises(InputError, match="row 0: paraphrased_rouge should be a number or null, got"):
        read_log(write(tmp_path, content))


def test_a_row_without_wrong_answers_has_no_truth_ratio_of_any_variant(tmp_path):
    content = load("target_native")
    content["sets"]["forget"][2] |= {"wrong_nll": [], "log_ratio": 3.0}
    for variant in ("geometric", "arithmetic"):
        assert 2 in score(write(tmp_path, content), truth_ratio=variant)["unscored_rows"]["forget"]


def test_another_version_of_a_log_is_told_from_a_class_that_is_missing(tmp_path):
    content = json.loads((DATA / "target_native.json").read_text())
    path = tmp_path / "log.json"
    path.write_text(json.dumps(content | {"format": "dipo-lightning/tofu/9", "benchmark": ""}))
    with pytest.raises(InputError, match=r"unknown format 'dipo-lightning/tofu/9'; this version reads (?!.*cannot)"):
        read_log(path)
    path.write_text(json.dumps(content | {"format": "nowhere/1", "benchmark": "nowhere.Benchmark"}))
    with pytest.raises(InputError, match=r"unknown format 'nowhere/1'.*nowhere\.Benchmark, cannot be imported here"):
        read_log(path)


def test_the_metrics_of_a_log_are_an_object(tmp_path):
    content = json.loads((DATA / "target_native.json").read_text())
    content["settings"]["metrics"] = ["words"]
    path = tmp_path / "log.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"log\.json: settings\.metrics should be an object"):
        read_log(path)
