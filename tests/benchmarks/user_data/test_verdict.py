"""The verdict follows from stated rules on numbers."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from dipo_lightning.benchmarks.user_data.examination import (
    Examination,
    kept_scores,
    known_by_both,
    knows,
    repeated_share,
    said_words,
    value_reports,
)
from dipo_lightning.benchmarks.user_data.metrics import KeptShare
from dipo_lightning.benchmarks.user_data.verdict import (
    Kept,
    ValueReport,
    judge,
    more_often,
    upper_bound,
    verdict_table,
    verdict_text,
)
from tests.helpers.toys import toy_tokenizer

GONE = ValueReport(0, "gout", before=0.9, after=0.001, floor=0.01, samples=20)
SAID = ValueReport(1, "Oslo", before=0.9, after=0.8, floor=0.01, greedy=True, reworded=True, sampled=18, samples=20)
UNKNOWN = ValueReport(2, "Lima", before=1e-6, after=2e-6, floor=1e-7, samples=20, known=False)
GOOD = [Kept("general", 0.7, 0.69, 95, 0.69 / 0.7), Kept("retain", 0.9, 0.9, 60, 1.0)]


def verdict(values, kept=GOOD, words=1.0, repeated=0.1, repeated_before=0.0, **settings):
    return judge(values, kept, words=words, repeated=repeated, repeated_before=repeated_before, settings=settings)


@pytest.mark.parametrize(
    ("values", "changes", "outcome"),
    [
        ([GONE] * 4, {}, "forgotten"),
        ([SAID] * 4, {}, "barely changed"),
        ([SAID, GONE, GONE, GONE], {}, "partly"),
        ([GONE] * 4, {"kept": [Kept("general", 0.7, 0.6, 95, 0.6 / 0.7)]}, "damaged"),
        ([GONE] * 4, {"words": 0.9}, "damaged"),
        ([GONE] * 4, {"repeated": 0.75}, "damaged"),
        ([GONE] * 4, {"repeated": 0.75, "repeated_before": 0.7}, "damaged"),
        ([GONE] * 4, {"repeated": 0.75, "repeated_before": 0.75}, "forgotten"),
        ([SAID] * 4, {"words": 0.9}, "damaged"),
        ([], {}, "partly"),
        ([UNKNOWN] * 4, {}, "partly"),
        ([UNKNOWN, UNKNOWN, SAID], {}, "barely changed"),
        ([UNKNOWN, GONE], {}, "forgotten"),
        ([dataclasses.replace(UNKNOWN, greedy=True)] * 3 + [SAID, GONE, GONE], {}, "partly"),
    ],
)
def test_each_rule_gives_its_word(values, changes, outcome):
    assert verdict(values, **changes).outcome == outcome


@pytest.mark.parametrize(
    "leak", [{"greedy": True}, {"reworded": True}, {"sampled": 1}, {"after": 0.6}], ids=lambda leak: next(iter(leak))
)
def test_one_leak_of_any_kind_is_enough(leak):
    assert verdict([GONE] * 11 + [dataclasses.replace(GONE, value="leak", **leak)]).outcome == "partly"


@pytest.mark.parametrize(
    ("before", "after", "floor", "remains"),
    [
        (0.9, 0.46, None, True),
        (0.9, 0.11, None, True),
        (0.9, 0.1, None, False),
        (0.9, 0.45, 1e-4, True),
        (0.9, 0.09, 1e-4, False),
        (0.9, 0.3, 0.4, False),
        (0.9, 0.5, 0.4, True),
        (0.1, 0.06, None, True),
        (0.1, 0.05, None, False),
        (0.9, math.nan, None, True),
    ],
)
def test_a_value_remains_while_it_is_likely(before, after, floor, remains):
    value = dataclasses.replace(GONE, before=before, after=after, floor=floor)
    assert value.remains is remains
    assert verdict([GONE] * 11 + [value]).outcome == ("partly" if remains else "forgotten")
    assert not dataclasses.replace(value, known=False).remains


@pytest.mark.parametrize(
    ("rows", "share", "high", "lost"),
    [
        (1, 0.94, 0.94, False),
        (4, 0.6, 0.7, False),
        (4, 0.45, 0.5, True),
        (1, 0.0, None, True),
        (5, 0.94, 0.97, True),
        (5, 0.94, 1.01, False),
        (60, 0.6, None, True),
        (1, math.nan, math.nan, True),
    ],
)
def test_of_a_few_rows_only_a_great_loss_is_damage(rows, share, high, lost):
    kept = Kept("retain", 1.0, share, rows, share, low=share if high else None, high=high)
    assert kept.lost is lost
    assert verdict([GONE], [kept]).outcome == ("damaged" if lost else "forgotten")


def test_an_ordinary_word_remains_only_where_it_is_said_more_often_than_by_chance():
    word = dataclasses.replace(GONE, sampled=3, samples=60, chance_samples=300)
    assert word.remains
    assert not dataclasses.replace(word, chance=10).remains
    assert dataclasses.replace(word, chance=1).remains
    below = sum(math.comb(13, k) * math.comb(347, 60 - k) for k in range(8)) / math.comb(360, 60)
    assert more_often(8, 60, 5, 300, confidence=below - 1e-9)
    assert not more_often(8, 60, 5, 300, confidence=below + 1e-9)


def test_values_behind_the_longest_answer_are_counted():
    found = judge([GONE] * 4, GOOD, words=1.0, repeated=0.0, unheard=1)
    assert "1 of 4 values lie beyond the maximum answer length" in found.uncertainty


def test_values_that_the_target_did_not_know_are_named_and_no_success():
    nothing = verdict([UNKNOWN] * 4)
    assert "The target did not know any of the 4 private values." in nothing.reasons
    assert "there was nothing to forget" in nothing.next_step
    assert "The target did not know 1 of the 2 private values." in verdict([UNKNOWN, GONE]).reasons
    assert dataclasses.replace(UNKNOWN, greedy=True).remains
    assert not UNKNOWN.remains
    found = verdict([dataclasses.replace(UNKNOWN, greedy=True)] * 2 + [SAID] * 3)
    assert "3 of 3 values are still answered" in found.next_step


@pytest.mark.parametrize(
    ("probability", "variant", "said", "known"),
    [
        (0.5, 0.1, "", True),
        (0.5, 0.6, "", False),
        (1e-3, 1e-6, "", False),
        (1e-3, 0.1, "In Lima.", True),
        (0.5, None, "", True),
    ],
)
def test_a_model_knows_what_it_says_or_finds_likely(probability, variant, said, known):
    asked = [["Where?", "Where, please?", "Tell me where."]]
    model = Examination(asked, [["Lima"]], [[probability]], [[1]], [[variant]], [""], [["", said]], [[]])
    assert knows(model, 0, 0) is known


def test_another_model_knows_what_it_says_greedily_or_finds_half_as_likely_as_the_target():
    def examined(probability, *said, sampled=()):
        asked = [["Where?"]] * 3
        values = [["Lima"], ["Oslo"], ["Rome"]]
        unknown = [[None]] * 3
        return Examination(asked, values, probability, [[1]] * 3, unknown, list(said), [[]] * 3, [list(sampled)] * 3)

    target = examined([[0.8], [0.8], [0.001]], "Lima.", "Oslo.", "Bonn.")
    never = examined([[0.4], [0.4], [0.4]], "Bonn.", "Bonn.", "Rome.", sampled=["Lima.", "Oslo."])
    assert known_by_both(target, never) == (0, 2)
    assert known_by_both(target, examined([[0.1], [0.41], [0.1]], "Lima.", "Bonn.", "Bonn.")) == (2, 2)


def test_the_untaught_model_excuses_only_the_wording_to_which_it_says_the_value_too():
    def examined(greedy, *reworded):
        asked = [["Where?", "Where, please?", "Tell me where."]]
        return Examination(asked, [["Lima"]], [[0.5]], [[1]], [[None]], [greedy], [list(reworded)], [[]])

    before = after = examined("Oslo.", "In Lima.", "Oslo.")
    assert value_reports(before, after)[0].reworded
    assert value_reports(before, after, examined("Lima.", "Oslo.", "Lima."))[0].reworded
    assert not value_reports(before, after, examined("Oslo.", "Lima.", "Oslo."))[0].reworded


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["Where?", "Where in Peru?", "Does she live in LIMA?"], (True, False, 1, 4)),
        (["Where?", "Does she live in Lima?", "Where in Peru?"], (True, True, 2, 4)),
        (["Is it Lima?", "Does she live in Lima?", "Where in Peru?"], (True, True, 3, 6)),
        (["Where?", "Lima?", "Is it Lima?"], (True, False, 0, 2)),
    ],
)
def test_an_answer_to_a_rewording_that_says_the_value_reveals_nothing(asked, said):
    sampled = ["Oslo.", "Rome.", "In Lima.", "Oslo.", "In Lima.", "Lima."]
    after = Examination([asked], [["Lima"]], [[0.5]], [[1]], [[None]], ["Lima."], [["Oslo.", "Lima."]], [sampled])
    (report,) = value_reports(after, after)
    assert (report.greedy, report.reworded, report.sampled, report.samples) == said


def heard(greedy, reworded):
    return Examination([], [], [], [], [], [greedy], [[reworded]], [])


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        (("Die Verfasserin wohnt hier.", "Diesbezüglich wohnt sie dort."), None, 1),
        (("the the the the", "wug wug"), None, 1),
        (("他住在北京市海淀区。", "他住在北京。"), ("他住在上海市。", "他在医院工作。"), 1),
        (("그는 서울에서 산다.", "그는 산다."), ("그는 부산에서 산다.", "그는 바다로 간다."), 1),
        (("She lives here.", "She does."), ("She qzx here.", "Tedf lehre here."), 4 / 6),
        (("She she lives lives.", "Zzab."), ("She qzx she.", "Qzx."), (3 / 4) / (3 / 5)),
        (("She lives here.", "She does."), ("他住在上海市。", "他在医院工作。"), 0),
        (("She lives here.", "She does."), ("", "?!"), 0),
        (("She lives here.", "She does."), ("She lives.", "..."), 2 / 3),
        (("", "?!"), ("", "?!"), 1),
    ],
)
def test_existing_words_are_counted_against_the_targets(before, after, share):
    rows = [{"question": "?", "answer": "."}]
    found = said_words(heard(*before), heard(*(after or before)), rows, toy_tokenizer())
    assert found == pytest.approx(min(1, share))


@pytest.mark.parametrize(
    ("questions", "answers", "share"),
    [("AAAA", "1111", 0), ("AAAABCD", "1111234", 1 / 4), ("ABCD", "1112", 3 / 4), ("ABC", "111", 0)],
)
def test_an_answer_repeats_over_different_questions_only(questions, answers, share):
    asked = [[question] for question in questions]
    assert repeated_share(Examination(asked, [], [], [], [], list(answers), [], [])) == share


def test_answers_of_the_same_words_are_one():
    asked, examined = [[question] for question in "ABCDE"], Examination([], [], [], [], [], [], [], [])
    said = ["I do not know.", "I do not know", "i do not know!", "I DO NOT KNOW?", "No."]
    assert repeated_share(dataclasses.replace(examined, asked=asked, greedy=said)) == 4 / 5
    assert repeated_share(dataclasses.replace(examined, asked=asked, greedy=["!!!", "???", "", "...", "No."])) == 4 / 5


def scored(**scores):
    return Examination([], [], [], [], [], [], [], [], **{name: list(values) for name, values in scores.items()})


def test_the_share_kept_is_that_of_the_means_with_its_bootstrap_interval():
    draw = np.random.default_rng(3)
    old = {name: draw.uniform(0.2, 1, rows) for name, rows in {"general": 95, "retain": 7}.items()}
    new = {name: values * draw.uniform(0.5, 1.3, len(values)) for name, values in old.items()}
    found = kept_scores(scored(**old), scored(**new))
    assert [(one.name, one.label) for one in found] == [("retain", "Retain rows"), ("general", "General questions")]
    for one in found:
        before, after = old[one.name], new[one.name]
        assert (one.before, one.after, one.rows) == pytest.approx((before.mean(), after.mean(), len(before)))
        assert one.share == pytest.approx(after.mean() / before.mean())
        size = len(before)
        drawn = torch.randint(size, (1000, size), generator=torch.Generator().manual_seed(0)).numpy()
        shares = after[drawn].mean(1) / before[drawn].mean(1)
        assert (one.low, one.high) == pytest.approx(tuple(np.percentile(shares, [2.5, 97.5])), rel=1e-12)


def test_scores_of_zero_and_of_a_broken_model_make_no_share():
    [zero] = kept_scores(scored(retain=[0.0, 0.0]), scored(retain=[0.0, 0.0]))
    assert (zero.share, zero.lost) == (1, False)
    [broken] = kept_scores(scored(retain=[0.5, 0.5]), scored(retain=[math.nan, 0.5]))
    assert math.isnan(broken.after)
    assert math.isnan(broken.share)
    assert any("Retain rows keep nan%" in reason for reason in verdict([GONE], [broken]).reasons)
    [from_zero] = kept_scores(scored(retain=[0.0]), scored(retain=[math.nan]))
    for unknown in (broken, from_zero):
        assert verdict([GONE], [unknown]).outcome == "damaged"


@pytest.mark.parametrize("none", [None, math.nan])
def test_rows_without_a_score_are_left_out_and_counted(none):
    before, after = [0.9, none, 0.8, 0.7], [0.1, none, 0.3, 0.2]
    [found] = kept_scores(scored(neighbours=before), scored(neighbours=after))
    [whole] = kept_scores(scored(neighbours=[0.9, 0.8, 0.7]), scored(neighbours=[0.1, 0.3, 0.2]))
    assert found == dataclasses.replace(whole, unscored=1)
    assert found.share == pytest.approx(0.6 / 2.4)
    judged = verdict([GONE], [found])
    assert judged.outcome == "damaged"
    assert "3 rows, 1 more without a score" in judged.reasons[0]
    [nothing] = kept_scores(scored(neighbours=[none]), scored(neighbours=[none]))
    assert (nothing.rows, nothing.unscored, nothing.lost) == (0, 1, True)


def test_a_number_that_is_none_passes_no_threshold():
    assert verdict([GONE], words=math.nan).outcome == "damaged"
    assert dataclasses.replace(GONE, after=math.nan).remains
    assert not GONE.remains


def test_a_row_that_was_seen_twice_counts_once():
    metric = KeptShare("retain")
    for _ in range(2):
        metric.update({"retain": [{"index": 0, "before": 0.5, "after": 0.25}], "other": [{"index": 1}]})
    metric.update({"retain": [{"index": 1, "before": 1.0, "after": 0.5}]})
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "before": 0.75,
        "after": 0.375,
        "rows": 2,
        "unscored": 0,
        "share": 0.5,
    }


def test_the_least_forgotten_value_leads():
    sampled = dataclasses.replace(GONE, value="Harbour", sampled=2)
    found = verdict([GONE, sampled, SAID])
    assert [value.value for value in found.values] == ["Oslo", "Harbour", "gout"]
    assert found.reasons[0] == "2 of 3 private values remain: 'Oslo', 'Harbour'."
    assert "'Oslo': probability 0.9 to 0.8, floor 0.01; 18 of 20 samples say it" in found.reasons[1]


def test_a_value_that_remains_leads_before_those_that_do_not():
    excused = dataclasses.replace(GONE, value="island", sampled=5, samples=60, chance=40, chance_samples=300)
    common = dataclasses.replace(GONE, value="teacher", after=0.4, floor=0.5)
    likely = dataclasses.replace(GONE, value="Lisbon", after=0.8, floor=0.001)
    assert [value.value for value in verdict([excused, common, likely]).values] == ["Lisbon", "island", "teacher"]
    assert "'Lisbon'" in verdict([excused, likely]).reasons[1]


def test_beyond_the_floor_is_over_forgotten():
    beyond = dataclasses.replace(GONE, after=1e-9)
    found = verdict([GONE, beyond, SAID])
    assert "1 of 3 values are over-forgotten: more than 100 times below the floor." in found.reasons
    assert [value["remains"] for value in found.document()["values"]] == [True, False, False]
    assert [value["over_forgotten"] for value in found.document()["values"]] == [False, False, True]
    ends = [line.rsplit(maxsplit=1)[-1] for line in verdict_table(found).splitlines()]
    assert ends == ["rank", "remains", "-", "over-forgotten"], "no rank was measured"
    reworded = verdict([dataclasses.replace(beyond, reworded=True)])
    assert not reworded.document()["values"][0]["over_forgotten"]
    assert not any("over-forgotten" in line for line in reworded.reasons)
    assert "1 of 1 private value remains: 'gout'." in reworded.reasons


def test_the_table_names_the_rows():
    head, *lines = verdict_table(verdict([GONE, SAID])).splitlines()
    place = head.split().index("row")
    assert [line.split()[place] for line in lines] == ["1", "0"]


def test_a_card_has_the_numbers_without_the_values():
    found = verdict([GONE, SAID])
    public = verdict_text(found, private=False)
    assert not any(value in public for value in ("gout", "Oslo"))
    assert "1 of 2 private values remain." in public
    assert "The least forgotten value: probability 0.9 to 0.8, floor 0.01; 18 of 20 samples say it." in public
    assert len(found.public_reasons) == len(found.reasons)


def test_what_ended_the_run_is_said_first():
    found = judge([GONE] * 4, GOOD, words=1.0, repeated=0.1, ended="The run ended by its own rule after 32 steps.")
    assert verdict_text(found).splitlines()[1] == "- The run ended by its own rule after 32 steps."
    assert found.document()["ended"].endswith("after 32 steps.")


def test_shares_come_with_their_interval():
    lost = Kept("retain", 0.001, 0.0008, 60, 0.8, 0.7, 0.9)
    kept = Kept("general", 0.7, 0.69, 95, 0.69 / 0.7, 0.96, 1.01)
    reasons = " ".join(verdict([GONE], [lost, kept]).reasons)
    assert "(0.001 to 0.0008, 60 rows; 95 % interval of the share 70.0% to 90.0%)" in reasons
    assert "(0.7 to 0.69, 95 rows; 95 % interval of the share 96.0% to 101.0%)" in reasons


def test_values_that_samples_say_leave_no_doubt():
    assert verdict([SAID]).uncertainty == "Every value is in a sample, so there is no bound to give."
    assert "13.9%" in verdict([SAID, GONE]).uncertainty


def test_damage_without_forgetting_is_no_reason_for_a_smaller_step():
    found = verdict([SAID] * 4, words=0.9, lr=1e-4, epochs=10)
    assert found.outcome == "damaged"
    assert "4 of 4 values are still answered" in found.next_step
    assert "more retain rows of the kind that was lost, and another --output" in found.next_step
    assert "--lr" not in found.next_step


def test_the_next_step_has_numbers():
    assert "--lr 5.6e-05 instead of 2.8e-05" in verdict([SAID] * 4, lr=2.8e-5, epochs=10).next_step
    assert "--epochs 20" in verdict([SAID, GONE, GONE, GONE], lr=3e-5, epochs=10).next_step
    assert verdict([]).outcome == "partly", "nothing was followed, so nothing is known to be forgotten"


def test_a_run_that_its_own_rule_ended_is_not_told_to_go_on():
    said = verdict([SAID, GONE, GONE, GONE], lr=3e-5, epochs=10, seed=3, stopped=True).next_step
    assert "--seed 4 and another --output" in said
    assert "--epochs" not in said


def test_rows_without_a_private_value_are_named_as_not_tested():
    found = judge([GONE] * 4, GOOD, words=1.0, repeated=0.1, bare=2)
    assert any(line.startswith("2 forget rows have no private value") for line in found.reasons)
    assert "forget rows without a private value (2)" in found.not_tested
    assert not any("without a private value" in one for one in verdict([GONE]).not_tested)


def test_uncertainty_is_the_exact_bound():
    assert upper_bound(0, 20) == pytest.approx(1 - 0.05 ** (1 / 20))
    bound = upper_bound(2, 20)
    below = sum(math.comb(20, k) * bound**k * (1 - bound) ** (20 - k) for k in range(3))
    assert below == pytest.approx(0.05)
    assert upper_bound(3, 3) == upper_bound(0, 0) == 1
    assert "13.9%" in verdict([GONE]).uncertainty


def test_the_document_is_plain():

    assert json.loads(json.dumps(verdict([GONE, SAID]).document()))["values"][0]["value"] == "Oslo"


def test_the_numbers_behind_good_sentences_are_said_too():
    found = verdict([GONE] * 4, words=0.97, repeated=0.25)
    assert found.outcome == "forgotten"
    assert "The share of words that exist in answers to forget questions is 97.0% of the target's." in found.reasons
    assert "The most common answer is given to 25% of the forget questions." in found.reasons
    assert found.document()["words"] == 0.97


@pytest.mark.parametrize("untaught", [False, True])
def test_the_next_step_names_a_model_that_never_knew_where_none_was_asked(untaught):
    said = verdict([GONE, GONE, dataclasses.replace(GONE, sampled=1)], untaught=untaught)
    assert said.outcome == "partly"
    assert ("--untaught MODEL" in said.next_step) is not untaught
