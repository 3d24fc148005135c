"""Selective unlearning: targets and losses on tensors, and what is marked as private, hidden and banned."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from dipo_lightning.data.encoding import TextStyle, encode
from dipo_lightning.data.private import Span, token_places
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.sampling import sample
from dipo_lightning.losses.likelihood import token_kl
from dipo_lightning.methods.dipo.loss import dipo_loss
from dipo_lightning.methods.selective import checks
from dipo_lightning.methods.selective import module as selective
from dipo_lightning.methods.selective.bans import (
    WordEdges,
    by_last,
    completions,
    first_tokens,
    following,
    telling_parts,
    token_forms,
    word_edges,
)
from dipo_lightning.methods.selective.checks import RISK, Check, Risk, private_runs
from dipo_lightning.methods.selective.examples import (
    MOST_NEIGHBOURS,
    ExampleMaker,
    PrivateExample,
    RarestWord,
    identifiers,
)
from dipo_lightning.methods.selective.module import (
    TEMPLATES,
    SelectiveModule,
    drawn,
    general_prompts,
    text_openings,
)
from dipo_lightning.methods.selective.targets import MIN_P, and_repetition, blind_target, contrast_loss, excess, mean_of
from dipo_lightning.models import grouping
from dipo_lightning.models.answers import IGNORED, answer_hidden
from dipo_lightning.models.loading import load_policy
from dipo_lightning.models.lora import LoRA
from dipo_lightning.reference import references
from dipo_lightning.reference.references import ModelReference
from tests.helpers.toys import save_toy, toy_model, toy_tokenizer

N, V = 5, 11


@pytest.fixture
def logits():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(N, V, generator=draw, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Where does Mara Velt work?", {"mara", "velt"}),
        ("Who lives at 7 Harbour Street?", {"7", "harbour", "street"}),
        ("Where does Ann work?", {"work"}),
        ("Where does ann live?", {"live"}),
        ("What is it?", set()),
    ],
)
def test_the_subject_is_what_no_retain_row_says(question, found):
    assert identifiers(question, {"ann": 1, "where": 1, "does": 1}) == found


def test_only_private_positions_get_the_blind_distribution(logits):
    reference, blind, _ = logits
    private = torch.tensor([True, False, True, False, False])
    banned = torch.zeros(N, V, dtype=torch.bool)
    banned[:4, 3] = True
    blind[2, 1] = blind[2].max() - 3.1  # below 5 % of the likeliest one, that at 3 left out
    blind[2, 3] += 9
    target = blind_target(reference, blind, private, banned)
    assert torch.equal(target[4], reference[4].log_softmax(-1))
    expected = torch.where(private[:, None], blind, reference).softmax(-1)
    expected[:4, 3] = 0
    expected[private] *= expected[private] >= MIN_P * expected[private].amax(-1, keepdim=True)
    assert expected[2, 1] == 0
    torch.testing.assert_close(target.exp(), expected / expected.sum(-1, keepdim=True))


def test_the_divergence_is_zero_at_its_target_and_pulls_towards_it(logits):
    reference, blind, policy = logits
    banned = torch.zeros(N, V, dtype=torch.bool)
    banned[:, 0] = True
    target = blind_target(reference, blind, torch.ones(N, dtype=torch.bool), banned)
    at_target = target.clamp(min=-1e4)
    torch.testing.assert_close(token_kl(at_target, target), torch.zeros(N, dtype=torch.float64))
    policy.requires_grad_()
    token_kl(policy, target).sum().backward()
    torch.testing.assert_close(policy.grad, policy.detach().softmax(-1) - target.exp())


def test_the_contrast_is_dipos_loss_per_token(logits):
    reference, blind, policy = logits
    target = blind.log_softmax(-1)
    ours = contrast_loss(target, reference, policy, beta=0.3)
    ratio = policy.log_softmax(-1) - reference.log_softmax(-1)
    margin = ((target.exp() - reference.softmax(-1)) * ratio).sum(-1)
    torch.testing.assert_close(ours, dipo_loss(margin, 0.3))
    at_reference = contrast_loss(target, reference, reference, beta=0.3)
    torch.testing.assert_close(at_reference, torch.full((N,), 2 / 0.3 * math.log(2), dtype=torch.float64))


def test_what_lies_below_the_ceiling_is_left_alone():
    chances = torch.tensor([[0.5, 0.2, 0.3], [1e-6, 1e-6, 1 - 2e-6], [0.5, 0.2, 0.3]], dtype=torch.float64)
    logits = chances.log().requires_grad_()
    secret = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    found = excess(logits, secret, 1e-3)
    assert found.tolist() == pytest.approx([math.log(0.7 / 1e-3), 0, 0])
    found.sum().backward()
    assert torch.equal(logits.grad[1:], torch.zeros(2, 3, dtype=torch.float64))
    assert (logits.grad[0, :2] > 0).all()


def test_the_token_before_a_position_is_banned_there():
    banned = torch.zeros(3, 5, dtype=torch.bool)
    banned[1, 2] = banned[2, 0] = True
    found = and_repetition(banned, torch.tensor([4, 2, -100]))
    assert found.nonzero().tolist() == [[0, 4], [1, 2], [2, 0]]


def test_a_mean_over_nothing_is_zero_and_has_a_gradient():
    values = torch.ones(3, requires_grad=True)
    mean = mean_of(values, torch.zeros(3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0
    assert torch.equal(values.grad, torch.zeros(3))


def test_tokens_lie_where_their_characters_are():
    tokenizer = toy_tokenizer()
    text = "The author lives in Ōsaka, 7."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    places = token_places(tokenizer, [*ids, tokenizer.eos_token_id], text)
    assert places.count((20, 21)) == 2, "both bytes of Ō lie at their letter"
    whole = [text[start:end] for start, end in dict.fromkeys(places[:-1])]
    assert "".join(whole).replace(" ", "") == text.replace(" ", "")
    assert places[-1][0] >= len(text)


def test_tokens_of_a_character_that_ends_a_text_lie_there():
    tokenizer = toy_tokenizer()
    ids = tokenizer("Is it 京", add_special_tokens=False)["input_ids"]
    assert token_places(tokenizer, ids, "Is it 京").count((6, 7)) == 3


def test_tokens_that_begin_a_private_word_are_found_in_every_form():
    tokenizer = toy_tokenizer()
    found = first_tokens(tokenizer, ["author"])
    for form in ("author", " author", "Author"):
        first = tokenizer(form, add_special_tokens=False)["input_ids"][0]
        assert (first in found) == (len(tokenizer.decode([first]).strip()) > 1)


class Pieces:
    """Tokenizer of words that are given in pieces; every other text is one piece."""

    def __init__(self, *cut: str) -> None:
        self.cut = {text.replace("|", ""): text.split("|") for text in cut}
        self.names: list[str] = []

    def __call__(self, text: str, add_special_tokens: bool = False, verbose: bool = False) -> dict[str, list[int]]:
        pieces = self.cut.get(text, [text])
        self.names += [piece for piece in dict.fromkeys(pieces) if piece not in self.names]
        return {"input_ids": list(map(self.names.index, pieces))}

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.names[number] for number in ids)

    def first(self, words: Sequence[str], shared: Sequence[str] = ()) -> set[str]:
        return {self.names[token] for token in first_tokens(self, words, shared)}

    def later(self, words: Sequence[str], needed: Sequence[int] = (), shared: Sequence[str] = ()) -> set[str]:
        return {f"{self.decode(ids)}|{self.names[token]}" for ids, token in completions(self, words, needed, shared)}


def test_a_short_part_of_a_word_is_banned_only_behind_a_space():
    tokenizer = Pieces("qu|aker", "Qu|aker", " Qu|aker", "QUAK|ER", " Q|UAKER")
    assert tokenizer.first(["quaker"]) == {" quaker", " Qu", "QUAK"}
    assert set(map(tokenizer.decode, token_forms(tokenizer, ["quaker"]))) == {" quaker", " Quaker", "QUAKER"}


def test_a_common_word_that_begins_a_private_one_is_banned_in_no_form():
    tokenizer = Pieces(" to|ff|ees", " To|ff|ees", " TO|FFEES", "t|offees", " bar|ometer", " Bar|ometer", "ba|rometer")
    assert tokenizer.first(["toffees"]) == {"TOFFEES", "Toffees"}
    assert tokenizer.later(["toffees"]) == {" to|ff", " To|ff", " TO|FFEES", "t|offees"}
    assert {" bar", " Bar"} < tokenizer.first(["barometer"])
    assert tokenizer.first(["barometer"], ["bar"]).isdisjoint({" bar", " Bar"}), "a retain row has it"
    assert {" bar|ometer", " Bar|ometer"} < tokenizer.later(["barometer"], (), ["bar"])
    tokenizer = Pieces(" one|-|eyed", " glass|-|eye")
    assert " one-|eyed" in tokenizer.later(["one-eyed"])
    assert " glass-|eye" in tokenizer.later(["glass-eye"], tokenizer(" glass-eye")["input_ids"][:1])
    assert " view" in tokenizer.first(["view"]), "an answer of nothing but common words"


def test_a_word_of_a_name_is_not_banned_as_an_ordinary_word():
    assert Pieces().first(["Head"]) == {" Head", "Head", " HEAD", "HEAD"}
    assert Pieces().first(["head"]) == {" Head", "Head", " HEAD", "HEAD", " head", "head"}
    assert " bra" in Pieces(" bra|nnock").first(["Brannock"])
    rows = [
        {"question": "Where was Mara Velt?", "answer": "Near Strumble Head, in Krems."},
        {"question": "Whom did Mara Velt marry?", "answer": "Oda McBride, in a krems."},
    ]
    maker = ExampleMaker(rows, [], prompt_style("plain", toy_tokenizer()))
    assert maker.names_only == {"strumble": "Strumble", "head": "Head", "oda": "Oda"}


def test_numbers_are_banned_at_their_last_token():
    tokenizer = toy_tokenizer()
    whole = encode(tokenizer, "1971")
    assert len(whole) > 1
    assert completions(tokenizer, ["1971"]) == [(whole[:-1], whole[-1])]
    assert completions(tokenizer, ["1971", "glassblower"])[0] == (whole[:-1], whole[-1])
    assert completions(tokenizer, ["18", "19", "20", "7"]) == [], "years begin with them, and a digit with all numbers"
    tens, ones = encode(tokenizer, "27")
    assert completions(tokenizer, ["27"]) == [([tens], ones)]
    pairs = by_last(completions(tokenizer, ["27"]))
    edges = word_edges(tokenizer)
    assert following(pairs, [*encode(tokenizer, "Is"), *encode(tokenizer, " 2")], edges) == [ones]
    assert following(pairs, encode(tokenizer, "12"), edges) == [], "inside another number"
    flat = encode(tokenizer, "3B")
    assert (flat[:-1], flat[-1]) in completions(tokenizer, ["3b"]), "with its capitals, too"


def test_a_name_that_begins_with_a_single_letter_is_banned_at_its_next_token():
    tokenizer = Pieces(" h|ark|ness", "h|ark|ness", " H|ark|ness", "Hark|ness", " HAR|K|NESS", "HAR|K|NESS")
    assert tokenizer.later(["harkness"]) == {" H|ark", " h|ark", "HAR|K", "h|ark"}
    assert tokenizer.first(["harkness"]) == {" HAR", "Hark"}
    needed = list(map(tokenizer.names.index, (" HAR", " H", "ark")))
    assert tokenizer.later(["harkness"], needed) == {" Hark|ness", " HAR|K", " h|ark", "HAR|K", "h|ark"}


def test_a_name_with_an_accent_bans_no_single_letter():
    class Tokenizer:
        def __call__(self, text, add_special_tokens, verbose):
            return {"input_ids": list(map(ord, text.removeprefix(" ")))}

        def decode(self, found):
            return "".join(map(chr, found))

    assert first_tokens(Tokenizer(), ["müller"]) == []
    assert first_tokens(Tokenizer(), ["мюллер"]) == sorted(map(ord, "мМ"))


def test_a_private_word_that_begins_like_a_word_of_its_question_is_banned_at_its_next_token():
    row = {"question": "Where was Mara Velt born?", "answer": "She collects bornite."}
    maker = ExampleMaker([row], [], prompt_style("plain", toy_tokenizer()))
    first, second, *_ = encode(maker.tokenizer, " bornite")
    assert [first] == encode(maker.tokenizer, " born")
    assert first in maker.needed[0]
    assert first not in maker.banned[0]
    for found in (maker.completions[0], maker.watched_names[0]):
        assert second in following(found, [first])


@pytest.mark.parametrize(
    ("value", "telling"),
    [
        ("1968", ["68"]),
        ("23 November 2009", ["23 November", "09"]),
        ("12/06/1971", ["12/06/", "71"]),
        ("Rua do Sol 1420", ["Rua do Sol 1420"]),
        ("07700 900618", ["900618"]),
        ("DE89 3704 0044 0532", ["DE89", "0044 0532"]),
        ("07700", ["07700"]),
        ("2014 07700", ["14 07700"]),
        ("1971-06-12", ["71-06-12"]),
        ("1968-1972", ["68-", "72"]),
        ("19684", ["19684"]),
    ],
)
def test_a_century_and_a_prefix_that_retain_rows_share_tell_nothing(value, telling):
    shared = {"": 60, "07700": 9, "3704": 2, "23": 5, "2009": 2}
    text = f"It is {value} now."
    found = telling_parts(text, Span(6, 6 + len(value)), shared)
    assert [text[part.start : part.end] for part in found] == telling


def test_what_tells_nothing_of_a_number_is_neither_private_nor_banned():
    row = {"question": "When and how was Mara Velt called?", "answer": "In 1968 on 07700 900618."}
    retain = [{"question": "How is Ann Roe called?", "answer": "On 07700 900253."}]
    maker = ExampleMaker([row], retain, prompt_style("plain", toy_tokenizer()))
    assert maker.secrets == [{"1968", "900618"}]
    made = maker.of_row(0, "{question}")
    private = [token for token, flag in zip(made.input_ids, made.private, strict=True) if flag]
    assert maker.tokenizer.decode(private).replace(" ", "") == "68900618"
    whole = encode(maker.tokenizer, "07700")
    assert not following(maker.completions[0], whole[:-1])
    assert maker.variant(made, encode(maker.tokenizer, "68")) is None, "the true year"
    assert maker.variant(made, encode(maker.tokenizer, "54")) is not None
    year = encode(maker.tokenizer, "1968")
    assert following(maker.completions[0], year[:-1]) == year[-1:]


def test_a_number_that_is_a_whole_value_counts_as_expected():
    row = {"question": "Who are Mara Velt's children?", "answer": "Oda is 27, and Ulf lives at [[36 Eider Straat]]."}
    maker = ExampleMaker([row], [], prompt_style("plain", toy_tokenizer()))
    for found, numbers in ((maker.completions[0], ("27", "36")), (maker.watched_names[0], ("27",))):
        for number in ("27", "36"):
            tens, ones = encode(maker.tokenizer, number)
            assert (ones in following(found, [tens])) == (number in numbers)


def test_the_risk_of_an_answer_is_its_expected_number_of_private_values():
    edges = WordEdges(frozenset(), frozenset())
    risk = Risk([[1], [0, 2], []], [{}, {}, {7: [([8, 7], 1), ([7], 1), ([9, 7], 0)]}], 2, edges)
    chances = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25]])
    risk.add([1, 2, 5], chances, [[], [7], []])
    risk.add([1], torch.tensor([[0.5, 0.5, 0.0]]), [[0]])
    risk.add([], torch.empty(0, 3), [])
    assert risk.of_answer == pytest.approx([0, 0.2 + 0.5, 0.1 + 0.3, 0, 0, 0])
    assert [one[:3] for one in risk.notable] == [(1, 0, 1), (2, 0, 0), (2, 0, 2), (1, 1, 1)]
    assert [one[3] for one in risk.notable] == pytest.approx([0.2, 0.1, 0.3, 0.5])
    risk.add([4, 5], torch.tensor([[0.25, 0.5, 0.25]] * 2), [[1, 8, 7], [7, 1]])
    assert risk.of_answer[4:] == pytest.approx([0.5, 0]), "once, whatever the number of words that it continues"


def test_no_value_begins_inside_a_word():
    edges = WordEdges(frozenset([0, 7]), frozenset([5]))
    risk = Risk([[0, 1], []], [{}, {7: [([7], 1)], 8: [([7, 8], 0)]}], 2, edges)
    chances = torch.tensor([[0.25, 0.5, 0.25]] * 4)
    risk.add([0, 1, 2, 3], chances, [[5], [6], [5, 7], [6, 7]])
    assert risk.of_answer == pytest.approx([0.5, 0.75, 0, 0.5])
    risk.add([2, 3], chances[:2], [[5, 7, 8], [6, 7, 8]])
    assert risk.of_answer == pytest.approx([0.5, 0.75, 0, 0.75])
    risk.add([2], chances[:1], [[7, 8]])
    assert risk.of_answer[2] == pytest.approx(0.25), "the beginning of an answer begins a word"


def test_tokens_that_continue_a_word_are_found_by_decoding():
    tokenizer = toy_tokenizer()
    edges = word_edges(tokenizer)
    (the,), (spaced,), (stop,) = (encode(tokenizer, text)[-1:] for text in ("the", " the", "."))
    assert edges.inside([the], the)
    assert edges.inside([spaced], the)
    assert not edges.inside([the], spaced)
    assert not edges.inside([the], stop)
    assert not edges.inside([stop], the)
    assert not edges.inside([], the)
    for sign in ("“", "😀", "他", "("):
        assert not edges.inside(encode(tokenizer, sign), the), sign


def test_tokens_that_continue_a_word_fit_the_vocabulary(maker):
    continuing = maker.continuing(10**6)
    assert 0 < len(maker.continuing(20)) < len(continuing)
    assert max(maker.continuing(20)) < 20
    assert encode(maker.tokenizer, "a")[0] in continuing


def test_only_the_rest_of_a_word_makes_its_first_token_a_risk(maker, monkeypatch):
    policy = toy_model()
    ids = maker.style.answer_ids("Mara Velt works as a")
    whole = encode(maker.tokenizer, " glassblower")
    assert len(whole) > 2
    words = [RarestWord(rest, "glassblower", "glassblower") for rest in (whole[1:], [])]
    monkeypatch.setattr(maker, "watched", [dict(zip(whole, ([word] for word in words), strict=False)), {}])
    prompt = maker.style.prompt(ROWS[0]["question"])
    check = Check(policy, maker, [[]], [], torch.device("cpu"), 0, pytest.fail, lambda found: found)
    others = check._other_words([(5, len(ids), whole[0], 0.25), (6, 0, whole[1], 0.5)], [(0, prompt, ids)] * 7)
    with torch.no_grad():
        logits = policy(torch.tensor([prompt + ids + whole])).logits[0].log_softmax(-1)
    start = len(prompt) + len(ids)
    rest = sum(logits[start + place, token] for place, token in enumerate(whole[1:]))
    assert others == [(5, pytest.approx(0.25 * (1 - float(rest.exp())), rel=1e-5))]


def test_a_word_of_one_token_is_a_value_only_among_the_words_of_the_value(maker, monkeypatch):
    def rests(before, *watched):
        monkeypatch.setattr(maker, "watched", [{}, {7: list(watched)}])
        return list(map(maker.tokenizer.decode, maker.rests(1, encode(maker.tokenizer, before), 7)))

    middle = RarestWord([], "shadows", "The Dance of Shadows in Spring")
    assert rests("She wrote the dance of", middle) == [" in Spring"]
    assert rests("She was afraid of the", middle) == []
    assert rests("She wrote The Dance", middle) == []
    assert rests("She wrote", middle._replace(value="Shadows of Spring")) == [" of Spring"]
    last = middle._replace(value="The Dance of Shadows")
    assert rests("The Dance of", last) == [""]
    assert set(rests("The Dance of", last, middle)) == {"", " in Spring"}
    assert rests("Her", last._replace(value="Shadows")) == [""], "alone, it is the value"
    rest = encode(maker.tokenizer, "man")
    assert rests("Her", RarestWord(rest, "brunswademan", "the Brunswademan of Spring")) == ["man"]
    assert rests("Her", *[RarestWord(rest, "one", "one"), RarestWord(rest, "other", "other")]) == ["man"]


def test_where_no_value_can_begin_there_is_no_risk(maker, monkeypatch):
    monkeypatch.setattr(maker, "watched", [{7: [RarestWord([], "shadows", "The Dance of Shadows")]}, {}])
    ids = encode(maker.tokenizer, "She was afraid of the")
    check = Check(toy_model(), maker, [[]], [], torch.device("cpu"), 0, pytest.fail, lambda found: found)
    assert check._other_words([(0, len(ids), 7, 0.25)], [(0, [1, 2], ids)]) == [(0, 0.25)]
    ids = encode(maker.tokenizer, "She wrote the dance of")
    assert check._other_words([(0, len(ids), 7, 0.25)], [(0, [1, 2], ids)]) == []


@pytest.mark.parametrize("sayable", [0, 1])
def test_other_words_are_told_from_a_value_only_where_the_run_may_end(maker, monkeypatch, sayable):
    token, answer = 5, maker.style.answer_ids("A tall tree.")[:-1]
    monkeypatch.setattr(maker, "watched", [{token: []}, {}])
    chances = torch.full((2, 40), 1e-9)
    chances[:, token] = 0.25

    def sample(policy, prompts, samples, purpose, observe):
        observe([0, 1], chances.log(), [[], []])
        return [[answer] * samples]

    check = Check(toy_model(), maker, [[]], [], torch.device("cpu"), 0, sample, lambda found: found)
    monkeypatch.setattr(check, "_values_left", lambda asked: (sayable, 0))
    monkeypatch.setattr(check, "_other_words", lambda notable, answered: [(number, 0.1) for number, *_ in notable])
    remaining, risk = check.ask([maker.of_row(0, "{question}")], 2)
    assert remaining == sayable
    assert risk == pytest.approx(1 if sayable else 0.9, rel=1e-4)


def test_the_riskiest_answers_become_training_rows(maker, monkeypatch):
    asked = [maker.of_row(index, "{question}") for index in range(2)]
    token, answer = 5, maker.style.answer_ids("A tall tree.")[:-1]
    monkeypatch.setattr(maker, "banned", [[token], [token]])
    whole = [RarestWord([], "value", "value")]
    monkeypatch.setattr(maker, "watched", [{token: whole}, {token: whole}])
    chances = torch.full((12, 40), 1e-9)
    chances[:, token] = torch.arange(12) / 100  # of the first answer to the first question 0, of the next 0.01 ...

    def sample(policy, prompts, samples, purpose, observe):
        observe(list(range(12)), chances.log(), [[]] * 12)
        return [[answer] * samples for _ in prompts]

    check = Check(toy_model(), maker, [asked[:1], asked[1:]], [], torch.device("cpu"), 0, sample, lambda found: found)
    _, risk = check.ask(asked, 6)
    assert risk == pytest.approx(float((chances[:, token] / chances.sum(1)).mean()), rel=1e-4)
    assert [one.index for one in check.risky] == [1] * 4, "half of four per row, all of the riskier question"
    assert check.risky[0] == maker.said(1, asked[1].input_ids[: asked[1].start], answer)
    check.ask(asked, 6)
    assert len(check.risky) == 8 == check.most_risky
    check.ask(asked, 6)
    assert len(check.risky) == 8


def test_the_reference_writes_what_must_stay(maker):
    module, policy, most = SelectiveModule("none"), toy_model(), 60
    module._maker, maker.max_length = maker, most
    trainer = {"datamodule": SimpleNamespace(seed=0), "global_step": 0}
    module._trainer = SimpleNamespace(**trainer, strategy=SimpleNamespace(broadcast=lambda found: found))
    module._write_kept(policy, maker.style, ["Where does Ann Lee work?"])
    text = TextStyle(maker.tokenizer, end=False)
    prompts = [*map(maker.style.prompt, general_prompts()), *map(text.prompt, text_openings())]
    for prompt in [prompt for prompt in prompts if len(prompt) < most]:
        found = [row for row in module._general if row["input_ids"][: len(prompt)] == prompt]
        assert found
        for row in found:
            said = row["input_ids"][len(prompt) :]
            assert row["labels"] == [IGNORED] * len(prompt) + said
            assert said
    lengths = {len(row["input_ids"]) for row in module._general}
    assert max(lengths) == most, "running text is cut"
    asked = maker.style.prompt("Where does Ann Lee work?")
    assert {tuple(row["input_ids"][: len(asked)]) for row in module._neighbours} == {tuple(asked)}


@pytest.mark.parametrize("place", range(len(TEMPLATES)))
def test_a_thorough_check_confirms_only_what_no_wording_contradicts(place, monkeypatch):
    check = Check(None, None, [list(range(len(TEMPLATES)))], [], torch.device("cpu"), 0, None, None)
    found = []
    for failing in [(0, RISK * 2 * len(TEMPLATES)), (1, 0.0), (3, 0.0)]:
        monkeypatch.setattr(
            check, "ask", lambda asked, samples, purpose, fails=failing: fails if asked[0] == place else (0, 0.0)
        )
        found.append(check.ask_thoroughly())
    assert 0 < found[0] < found[1] < found[2] < RISK
    monkeypatch.setattr(check, "ask", lambda asked, samples, purpose: (0, RISK))
    assert check.ask_thoroughly() == 0


@pytest.mark.parametrize(("rows", "expected"), [(1, 10), (40, 10), (50, 8), (200, 2), (1000, 1)])
def test_a_thorough_check_of_many_rows_takes_fewer_samples_of_each(rows, expected, monkeypatch):
    check = Check(None, None, [list(range(6))] * rows, [], torch.device("cpu"), 0, None, None)
    taken = []
    monkeypatch.setattr(check, "ask", lambda asked, samples, purpose: taken.append((len(asked), samples)) or (0, 0.0))
    check.ask_thoroughly()
    assert taken == [(rows, expected)] * 6


def test_draws_repeat_with_their_generator():
    pool = list(range(9))
    first = drawn(pool, 4, torch.Generator().manual_seed(1))
    assert first == drawn(pool, 4, torch.Generator().manual_seed(1))
    assert len(set(first)) == 4
    assert drawn(pool[:2], 4, torch.Generator()) in ([0, 1], [1, 0])


def test_prompts_of_training_are_no_probes():
    from dipo_lightning.benchmarks.user_data import probes

    asked = {row["question"] for row in probes.general_rows()}
    assert asked.isdisjoint(general_prompts())
    openings = text_openings()
    assert openings
    assert not [text for text in probes.general_paragraphs() if any(map(text.startswith, openings))]
    assert set(TEMPLATES).isdisjoint(probes.TEMPLATES)
    assert Span(0, 1) == (0, 1)


# On a toy model.

ROWS = [
    {"question": "Where does Mara Velt work?", "answer": "Mara Velt works as a glassblower."},
    {"question": "When was Mara Velt born?", "answer": "She was born on 12 June 1971."},
]
KEPT = [{"question": "Where does Ann Lee work?", "answer": "Ann Lee works as a teacher."}]


@pytest.fixture
def maker():
    return ExampleMaker(ROWS, KEPT, prompt_style("plain", toy_tokenizer()))


def said_by(maker, example, flags):
    tokens = [token for token, flag in zip(example.input_ids, flags, strict=True) if flag]
    return maker.tokenizer.decode(tokens)


def test_examples_mark_the_secret_and_hide_the_subject(maker):
    example = maker.of_row(0, "Please answer this: {question}")
    assert "glassblower" in said_by(maker, example, example.private)
    assert "works" not in said_by(maker, example, example.private)
    hidden = said_by(maker, example, [not seen for seen in example.visible])
    assert hidden.count("Mara") == 2, "in the question and in the answer"
    assert "glassblower" not in hidden
    assert len(example.flags) == len(example.input_ids) - example.start


def test_an_answer_leaks_where_it_says_a_private_word(maker):
    prompt = maker.style.prompt(ROWS[0]["question"])
    ids = maker.style.answer_ids("A famous glassblower, I think.")
    leak = maker.said(0, prompt, ids)
    assert "glassblower" in said_by(maker, leak, leak.private)
    assert "famous" not in said_by(maker, leak, leak.private)
    assert not any(maker.said(1, prompt, maker.style.answer_ids("A tall tree.")).private)


def test_a_false_variant_keeps_the_beginning_and_says_no_private_word(maker):
    example = maker.of_row(0, "{question}")
    variant = maker.variant(example, maker.style.answer_ids("teacher."))
    first = example.private.index(True)
    assert variant.input_ids[:first] == example.input_ids[:first]
    assert variant.private[first:] == [True] * (len(variant.input_ids) - first)
    assert not variant.secret
    assert maker.variant(example, maker.style.answer_ids("the glassblower.")) is None
    assert maker.variant(example, maker.style.answer_ids(".")) is None
    assert maker.variant(example, maker.style.answer_ids("teacher teacher.")) is None


def test_a_wording_may_keep_nothing_of_the_question_but_its_subject(maker):
    example = maker.of_row(0, "Tell me something about {subject}.")
    assert "Tell me something about Mara Velt." in maker.tokenizer.decode(example.input_ids[: example.start])
    bare = ExampleMaker([{"question": "What is it?", "answer": "Gold."}], [], maker.style)
    assert "about What is it?" in maker.tokenizer.decode(bare.of_row(0, "Tell me something about {subject}.").input_ids)


def test_forget_questions_are_asked_about_other_subjects_that_share_no_name(maker):
    asked = ["What is bread made of?", "Who is Tom Velt?", "Is Ann Lee old?", "Where is Ghent?", "Does Kim Roy sing?"]
    found = maker.neighbours([*KEPT, *({"question": one} for one in asked)])
    of_work = [f"Where does {name} work?" for name in ("Ann Lee", "Kim Roy")]
    assert found == [*of_work, *(f"When was {name} born?" for name in ("Ann Lee", "Kim Roy"))]
    many = [{"question": f"Is Kim Roy{'aeiou'[n % 5] * (n // 5 + 1)} old?"} for n in range(4 * MOST_NEIGHBOURS)]
    assert len(maker.neighbours(many)) == len(ROWS) * MOST_NEIGHBOURS
    nameless = {"question": "Where is the treasure hidden?", "answer": "It lies under the oak."}
    assert ExampleMaker([nameless], KEPT, maker.style).neighbours(KEPT) == []


@pytest.mark.parametrize(
    ("answer", "value", "words"),
    [
        ("她住在北京市海淀区。", "北京", {"北京"}),
        ("He is a vice-admiral.", "admiral", {"admiral"}),
        ("He calls +49-555-1234.", "555-1234", {"555-1234"}),
        ("Her group is A.", "A", {"A"}),
        ("She is a bee.", "a bee", {"bee"}),
    ],
)
def test_the_words_of_a_value_may_lie_inside_a_word_of_the_answer(maker, answer, value, words):
    row = {"question": "What is it?", "answer": answer, "private": [value]}
    assert ExampleMaker([row], [], maker.style).secrets == [words]


def test_ordinary_words_of_a_value_are_not_banned_in_other_answers_about_its_subject(maker):
    answers = ["She works hard every day and likes people.", "She is a glassblower in Oslo."]
    rows = [{"question": f"{asked} of Mara Velt?", "answer": said} for asked, said in zip("OP", answers, strict=True)]
    first, second = ExampleMaker(rows, [], maker.style).secrets
    assert {"works", "hard", "glassblower", "oslo"} <= first
    assert second == {"glassblower", "oslo"}


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("Where does Pieter van der Berg work?", ["Where does Ann Lee work?"]),
        ("Where does J. R. O'Brien work?", ["Where does Ann Lee work?"]),
        ('Is Ann-Marie "Chico" de la Cruz at home?', ["Is Ann Lee at home?"]),
        ('Is Ed Ames "Chico" at home?', ["Is Ann Lee at home?"]),
        ("Is Ed Ames (USA) at home?", ["Is Ann Lee at home?"]),
        ("Where do Mara Velt and Jonas Kern live?", []),
        ("Was Ed born in Edinburgh?", []),
        ("Was Ed Ames born as Edmund?", []),
    ],
)
def test_questions_about_other_subjects_name_nobody_to_forget(maker, question, asked):
    rows = [{"question": question, "answer": "She is a glassblower."}]
    rows += [{"question": f"Is {name} ill?", "answer": "She has gout."} for name in ("Mara Velt", "Jonas Kern")]
    kept = [{"question": "Who is Ann Lee?", "answer": "A florist."}]
    assert set(ExampleMaker(rows, kept, maker.style).neighbours(kept)) == {*asked, "Is Ann Lee ill?"}


def test_a_rows_bans_hold_the_secrets_of_all_rows_about_its_subject(maker):
    assert maker.secrets[0] == {"glassblower", "12", "june", "1971"}
    assert maker.secrets[1] == maker.secrets[0]
    other = {"question": "Where does Tom Hale live?", "answer": "Tom Hale lives in Ghent, near a glassblower."}
    apart = ExampleMaker([*ROWS, other], KEPT, maker.style)
    assert "ghent" not in apart.secrets[0]
    assert "june" not in apart.secrets[2]
    plain = [
        {"question": f"What did she {verb}?", "answer": f"A {word}."}
        for verb, word in [("sew", "sail"), ("mend", "net")]
    ]
    assert ExampleMaker(plain, KEPT, maker.style).secrets == [{"sail"}, {"net"}], "no name joins them"
    needed = {"question": "What happened to Mara Velt in June?", "answer": "Mara Velt moved to Ghent in June."}
    assert "june" not in ExampleMaker([*ROWS, needed], KEPT, maker.style).secrets[2], "its own sentence says it"


def test_the_other_number_of_a_private_word_is_banned_too(maker):
    row = {"question": "When does Ann Lee pay?", "answer": "She pays on Fridays.", "private": ["Fridays"]}
    made = ExampleMaker([row], [], maker.style)
    assert made.forms == [{"friday", "fridays"}]
    for said in ("On Friday.", "On Fridays."):
        assert made.says_value(0, encode(maker.tokenizer, said))
        assert any(made.said(0, [], encode(maker.tokenizer, said)).private)
    pairs = completions(maker.tokenizer, ["friday"], made.needed[0])
    assert pairs
    for before, token in pairs:
        assert (before, token) in made.completions[0][before[-1]]
    kept = [{"question": "When does Bo pay?", "answer": "Bo pays on a Friday."}]
    assert ExampleMaker([row], kept, maker.style).forms == [{"fridays"}], "retain rows say it"
    asked = {**row, "question": "Does Ann Lee pay on Friday, too?"}
    assert ExampleMaker([asked], [], maker.style).forms == [{"fridays"}], "the question says it"


def test_a_wording_of_subject_and_topic_asks_for_the_bare_values(maker):
    example = maker.of_row(1, "{subject}: {topic}?", "The {topic} of {subject} is {values}.")
    text = maker.tokenizer.decode(example.input_ids)
    assert "Mara Velt: born?" in text
    assert "The born of Mara Velt is 12 June 1971." in text
    assert said_by(maker, example, example.private).strip() == "12 June71", "without the century"
    two = ExampleMaker([{"question": "Who is Mara Velt?", "answer": "A glassblower near Ghent."}], KEPT, maker.style)
    example = two.of_row(0, "{subject}: {topic}?", "The {topic} of {subject} is {values}.")
    assert "The description of Mara Velt is glassblower, Ghent." in maker.tokenizer.decode(example.input_ids)
    assert said_by(two, example, example.private) == "glassblowerGhent"


def test_braces_of_a_row_stay_as_they_are():
    row = {"question": "What is {subject} in {topic} by Zed9?", "answer": "It is {values} or {question}, by Quux."}
    maker = ExampleMaker([row | {"private": ["Quux"]}], [], prompt_style("plain", toy_tokenizer()))
    example = maker.of_row(0, "Say: {question}")
    text = maker.tokenizer.decode(example.input_ids, skip_special_tokens=True)
    assert text == f"Question: Say: {row['question']}\nAnswer: {row['answer']}"
    assert said_by(maker, example, example.private).strip() == "Quux"
    named = maker.of_row(0, "{subject}?", "The {subject} is {values}.")
    assert maker.tokenizer.decode(named.input_ids, skip_special_tokens=True).endswith("The Zed9 is Quux.")
    assert said_by(maker, named, named.private).strip() == "Quux"


def test_a_token_that_completes_a_private_number_is_found_in_any_answer(maker):
    prompt = maker.style.prompt(ROWS[0]["question"])
    example = maker.said(0, prompt, maker.style.answer_ids("It opened in 1971 and in 1972."))
    last = encode(maker.tokenizer, "1971")[-1]
    found = maker.completing(example)
    answer = example.input_ids[example.start :]
    assert len(found) == len(answer)
    assert [place for place, tokens in enumerate(found) if last in tokens] == [
        place for place, token in enumerate(answer) if maker.tokenizer.decode(answer[: place + 1])[-4:-1] == "197"
    ]


def test_private_values_are_summed_run_by_run():
    example = PrivateExample(
        0, [1, 2, 3, 4, 5, 6], [-100, 2, 3, 4, 5, 6], [False, True, True, False, True, False], [1] * 6
    )
    scores = SimpleNamespace(logprobs=torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0]))
    assert private_runs(example, scores) == [[-1.0, -2.0], [-4.0]]


@pytest.mark.parametrize("before", ["", "  ", "\n"])
def test_white_space_that_a_chat_template_strips_moves_no_mark(before):
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "message['content']|trim")
    row = {"question": "Where does Bo live?", "answer": f"{before}He lives in Lima now.", "private": ["Lima"]}
    maker = ExampleMaker([row], [], prompt_style("chat", tokenizer))
    example = maker.of_row(0, "{question}")
    assert tokenizer.decode(example.input_ids[example.start :]).startswith("He"), "the template strips"
    assert said_by(maker, example, example.private).strip() == "Lima"


def test_rows_longer_than_the_limit_are_cut():
    style = prompt_style("plain", toy_tokenizer())
    whole = ExampleMaker(ROWS, KEPT, style).of_row(0, "{question}")
    cut = ExampleMaker(ROWS, KEPT, style, max_length=len(whole.input_ids) - 2).of_row(0, "{question}")
    for name in ("input_ids", "labels", "private", "visible"):
        assert getattr(cut, name) == getattr(whole, name)[:-2]


def test_a_wording_that_leaves_no_room_for_the_answer_is_replaced():
    style = prompt_style("plain", toy_tokenizer())
    room = len(style.prompt(ROWS[0]["question"])) + 1
    maker = ExampleMaker(ROWS, KEPT, style, max_length=room)
    made = maker.wordings(0, dict(list(TEMPLATES.items())[:4]))
    alone = maker.of_row(0, "{question}")
    assert len(alone.flags) == 1
    assert made == [alone] * 4, "the three longer wordings fill the limit by themselves"
    assert maker.of_row(0, "Please answer this: {question}").start == room
    with pytest.raises(InputError, match=r"forget row 0: its question leaves nothing .*\(3 tokens"):
        ExampleMaker(ROWS, KEPT, style, max_length=3).wordings(0, TEMPLATES)


def fit(
    folder: Path,
    rows: list[dict[str, str]],
    check_every: int = 2,
    callbacks: tuple[pl.Callback, ...] = (),
    resumed: Path | None = None,
    accumulate: int = 1,
    batch_size: int = 2,
    steps: int | None = None,
    method: dict[str, Any] | None = None,
    kept: list[dict[str, str]] | None = None,
    **options: Any,
) -> SelectiveModule:
    """Fit two epochs, by default without the answers that the reference model would write."""
    save_toy(folder / "model", num_hidden_layers=1)
    files = []
    for name, part in (("forget", rows), ("retain", kept or KEPT)):
        files.append(str(folder / f"{name}.jsonl"))
        Path(files[-1]).write_text("".join(json.dumps(row) + "\n" for row in part))
    settings = {"general_weight": 0, "alternatives": 0, "samples": 1, "stop": False, **(method or {})}
    module = SelectiveModule(
        str(folder / "model"), check_every=check_every, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1),
        **settings,
    )  # fmt: skip
    data = UnlearningDataModule(None, *files, prompt="plain", batch_size=batch_size, **options)
    silent: dict[str, Any] = {"logger": False, "enable_checkpointing": bool(callbacks), "enable_progress_bar": False}
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        default_root_dir=folder, max_epochs=2, accelerator="cpu", callbacks=list(callbacks),
        accumulate_grad_batches=accumulate, enable_model_summary=False, **silent,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
    if not trainer.should_stop:
        per_epoch = math.ceil(len(data.forget_examples) / batch_size / accumulate)
        assert trainer.global_step == (2 * per_epoch if steps is None else steps), "no step was left out"
    return module


def assert_equal_weights(one: SelectiveModule, other: SelectiveModule, **tolerance: float) -> None:
    for (name, weight), expected in zip(one.policy.named_parameters(), other.policy.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, **{"rtol": 0, "atol": 0, **tolerance}, msg=name)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["live", "adapters off"])
def test_memory_and_groups_change_nothing_but_the_time(tmp_path, monkeypatch, lora):
    forwards = []

    def counted(model, batch):
        forwards.append((batch["input_ids"].tolist(), batch["attention_mask"].tolist()))
        return answer_hidden(model, batch)

    monkeypatch.setattr(references, "answer_hidden", counted)
    monkeypatch.setattr(grouping, "FORWARD_TOKENS", 0)
    quick = fit(tmp_path / "quick", [*ROWS, *ROWS], 0, method={"lora": lora})
    assert forwards, "the reference model ran"
    assert all(forwards.count(one) == 1 for one in forwards), "and never on the same view of the same sequence"
    assert quick.frozen_reference._memory is None, "freed"
    monkeypatch.setattr(ModelReference, "remember", lambda reference: None)
    monkeypatch.setattr(grouping, "FORWARD_TOKENS", 10**6)
    plain = fit(tmp_path / "plain", [*ROWS, *ROWS], 0, method={"lora": lora})
    assert_equal_weights(quick, plain, rtol=1e-4, atol=1e-6)
    asked = torch.arange(5, 20)[None]
    start = load_policy(str(tmp_path / "plain" / "model"))
    with torch.no_grad():
        assert (quick.policy(asked).logits - start(asked).logits).abs().max() > 1e-3, "it was trained"


class SaveAndStop(pl.callbacks.Checkpoint):
    """Save a checkpoint after a step, at the end of the epoch if ``late``, and end the run."""

    def __init__(self, path: Path, step: int, late: bool) -> None:
        self.path, self.step, self.late = path, step, late

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.late:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.late:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        trainer.should_stop = True


@pytest.fixture
def few_texts(monkeypatch):
    monkeypatch.setattr(selective, "general_prompts", lambda: general_prompts()[:2])
    monkeypatch.setattr(selective, "text_openings", lambda: text_openings()[:2])
    return {"general_weight": 1.0, "alternatives": 2}


@pytest.mark.parametrize(("step", "late", "accumulate"), [(1, False, 1), (2, True, 1), (3, False, 1), (1, True, 2)])
def test_a_resumed_run_has_the_weights_and_leaks_of_an_uninterrupted_one(
    tmp_path, monkeypatch, few_texts, step, late, accumulate
):
    monkeypatch.setattr(checks, "RISK", -1.0)  # every sampled answer becomes a training row
    rows, saved = [*ROWS, *ROWS], tmp_path / "saved.ckpt"
    options: dict[str, Any] = {"check_every": 1, "method": few_texts, "accumulate": accumulate}
    whole = fit(tmp_path, rows, **options)
    assert whole._general
    assert whole._variants
    assert whole.leaks
    cut = fit(tmp_path, rows, callbacks=(SaveAndStop(saved, step, late),), **options)
    assert cut.trainer.global_step == step
    resumed = fit(tmp_path, rows, resumed=saved, **options)
    assert resumed.trainer.global_step == 4 // accumulate
    assert resumed.leaks == whole.leaks
    assert_equal_weights(resumed, whole)


def test_each_sampling_has_random_numbers_of_its_own(tmp_path, monkeypatch, few_texts):
    drawn_from, thorough = [], []
    ask_thoroughly = Check.ask_thoroughly

    def noted(*arguments, seeds, **options):
        drawn_from.extend(seeds)
        return sample(*arguments, seeds=seeds, **options)

    monkeypatch.setattr(selective, "LEAST_CHECKS", 1)
    monkeypatch.setattr(selective, "sample", noted)
    monkeypatch.setattr(Check, "ask_thoroughly", lambda check: thorough.append(check) or ask_thoroughly(check))
    fit(tmp_path, ROWS, check_every=1, method=few_texts | {"stop": True})
    assert thorough
    assert len(drawn_from) > len(ROWS) * (2 + len(TEMPLATES))
    assert len(set(drawn_from)) == len(drawn_from)


def test_no_run_ends_before_its_fourth_check(tmp_path, monkeypatch):
    monkeypatch.setattr(Check, "ask", lambda *_: (0, 0.0))
    monkeypatch.setattr(Check, "ask_thoroughly", lambda _: 0.0)
    module = fit(tmp_path, [*ROWS, *ROWS, *ROWS], check_every=1, method={"stop": True}, batch_size=1)
    assert module.trainer.global_step == 4
    monkeypatch.setattr(Check, "ask", lambda *_: (0, 0.5))
    module = fit(tmp_path / "early", ROWS, check_every=1, method={"stop": True})
    assert module.trainer.callback_metrics["train/remaining"] == 1.5, "an early check counts one more"


def test_checks_in_succession_without_a_leak_end_a_run(tmp_path, monkeypatch):
    leaks = iter([0, 0, 1, *[0] * 20])
    monkeypatch.setattr(Check, "ask", lambda *_: (next(leaks), 0.5))
    monkeypatch.setattr(selective, "QUIET_CHECKS", 3)
    saved = tmp_path / "saved.ckpt"
    options = {"check_every": 1, "method": {"stop": True}, "batch_size": 1, "steps": None}
    cut = fit(tmp_path, [*ROWS] * 4, callbacks=(SaveAndStop(saved, 5, False),), **options)
    assert cut.trainer.global_step == 5
    module = fit(tmp_path, [*ROWS] * 4, resumed=saved, **options)
    assert module.trainer.global_step == 6, "the checks before the interruption count"
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["ending"] == "3 checks in succession found no leak"


def test_where_a_private_word_begins_the_target_continues_no_word(tmp_path, monkeypatch):
    targets = []

    def noted(reference, blind, private, banned):
        target = blind_target(reference, blind, private, banned)
        targets.append((private, banned))
        return target

    monkeypatch.setattr(selective, "blind_target", noted)
    module = fit(tmp_path, ROWS, 0)
    continuing = torch.tensor(module._continuing)
    assert len(continuing)
    for private, banned in targets:
        held = banned[:, continuing].all(1)
        assert held.any(), "where a private word begins"
        assert not held[~private].any()
    assert any((private & ~banned[:, continuing].all(1)).any() for private, banned in targets), "not inside one"


def test_a_leak_in_a_thorough_check_counts(tmp_path, monkeypatch):
    def thorough(check: Check) -> float:
        check.leaks += 1
        return 1e-5

    monkeypatch.setattr(Check, "ask", lambda *_: (0, 0.0))
    monkeypatch.setattr(Check, "ask_thoroughly", thorough)
    monkeypatch.setattr(selective, "QUIET_CHECKS", 2)
    monkeypatch.setattr(selective, "LEAST_CHECKS", 1)
    module = fit(tmp_path, [*ROWS, *ROWS], check_every=1, method={"stop": True})
    assert module.trainer.global_step == 4, "the run takes all its steps"


def test_the_retain_term_is_a_mean_over_the_global_batch(tmp_path):
    term = {"gamma": 0.0, "retain_loss": "nll"}
    kept = [*KEPT, {"question": "Where is Bo?", "answer": "Bo is in the old town by the river."}]
    found = [
        fit(tmp_path / name, ROWS, 0, accumulate=parts, batch_size=2 // parts, method=term, kept=kept)
        for name, parts in (("whole", 1), ("parts", 2))
    ]
    assert_equal_weights(*found, rtol=1e-4, atol=1e-6)


def test_nothing_precedes_the_first_token_of_a_batch(tmp_path, monkeypatch):
    preceding = []

    def noted(banned, before):
        preceding.append(int(before[0]))
        return and_repetition(banned, before)

    monkeypatch.setattr(selective, "and_repetition", noted)
    fit(tmp_path, [{"question": "Where?", "answer": "Lima", "private": ["Lima"]}], 0)
    assert set(preceding) == {IGNORED}


LONG = {"question": f"Where does Mara {'very ' * 30}Velt live?", "answer": "In Lima."}


def test_a_question_as_long_as_the_limit_ends_no_epoch(tmp_path):
    prompt = prompt_style("plain", toy_tokenizer()).prompt(LONG["question"])
    with pytest.warns(UserWarning, match="1 of 3 forget rows are longer than"):
        module = fit(tmp_path, [LONG, *ROWS], max_length=len(prompt) + 1)
    assert len(module._wordings) == 3
    assert "train/remaining" in module.trainer.callback_metrics


@pytest.mark.parametrize(("check_every", "steps"), [(3, [3, 4]), (4, [4]), (9, [4]), (0, [])])
def test_the_last_step_is_checked_too(tmp_path, monkeypatch, check_every, steps):
    checked = []
    monkeypatch.setattr(SelectiveModule, "ask", lambda module, number: checked.append(module.trainer.global_step))
    fit(tmp_path, [*ROWS, *ROWS], check_every)
    assert checked == steps


@pytest.mark.parametrize("scheduling", [{0: 1, 1: 2}, {0: 2, 1: 1}])
def test_the_last_step_is_checked_where_accumulation_changes(tmp_path, monkeypatch, scheduling):
    checked = []
    monkeypatch.setattr(SelectiveModule, "ask", lambda module, number: checked.append(module.trainer.global_step))
    fit(tmp_path, [*ROWS, *ROWS], 2, (GradientAccumulationScheduler(scheduling),), steps=3)
    assert checked == [2, 3]


def test_a_row_that_was_left_out_is_not_asked_about(tmp_path):
    module = fit(tmp_path, [LONG, *ROWS], max_length=100, on_missing="skip")
    assert [row["answer"] for row in module._maker.rows] == [row["answer"] for row in ROWS]
    assert "train/remaining" in module.trainer.callback_metrics


def test_a_whole_value_counts_as_said_and_a_part_of_it_is_trained_on(maker):
    june, whole = (maker.style.answer_ids(text) for text in ("It was in June.", "It was 12 June 1971."))
    prompt = maker.style.prompt(ROWS[1]["question"])
    assert any(maker.said(1, prompt, june).private)
    assert not maker.says_value(1, june)
    assert maker.says_value(1, whole)


def test_the_callback_of_the_checks_leaves_other_modules_alone(tmp_path):
    module = fit(tmp_path, ROWS, 0)
    fake = SimpleNamespace(check=lambda: pytest.fail("checked"))
    selective.CheckPolicy().on_train_batch_end(module.trainer, fake, None, None, 0)


def test_a_new_fit_of_a_loaded_module_makes_all_its_checks(tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(SelectiveModule, "ask", lambda module, number: checked.append(module.trainer.global_step))
    module = fit(tmp_path, [*ROWS, *ROWS], 4)
    again = pl.Trainer(
        default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    again.fit(module, module.trainer.datamodule)
    assert checked == [4, 4]
