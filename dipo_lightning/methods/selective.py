r"""Selective unlearning: the private values of an answer go, its sentence and everything else stay.

A loss over whole answers falls soonest where it is easiest, on the words that open every answer, and the secret
survives. Here each answer position is one of two kinds. At a *private* position t (a token of a private value) the
preferred distribution is the reference's own, blind to whom the question is about and without the private words:

    pi_w,t = softmax(h_blind,t, private words at -inf)

where h_blind are the reference's logits with the subject's name masked out of its attention. Everywhere else (the rest
of the forget answers, retain answers, the reference's own answers to general questions) the target is the reference.

At private positions the dispreferred distribution is the policy's own (``dispreferred: policy``): the gradient of the
DiPO margin <pi_w - pi_theta, h_theta> is then that of KL(pi_w || pi_theta), which brakes by itself where the policy
says what a model that never knew would say. With ``dispreferred: reference`` it is the reference's, and the loss is
DiPO's -2/beta log sigmoid(beta u_t) per token. Derived here from `dipo_lightning.methods.dipo.loss`; the pair is this
package's.

A divergence hardly pulls at a token of probability 0.02, and twenty samples still say it. So the true token of a
private position is also pushed down by its log-probability, but no further than to ``ceiling``.

The policy is also asked during training: private values that it says in samples become training rows at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from dipo_lightning.data.private import (
    FUNCTION_WORDS,
    Span,
    find_private,
    spans_of_values,
    token_flags,
    token_places,
    vocabulary,
    words,
)
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.generation import plain_settings
from dipo_lightning.evaluation.scoring import score
from dipo_lightning.losses.likelihood import token_kl
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers, over_logits
from dipo_lightning.models.distributed import evaluation_mode
from dipo_lightning.models.sharding import unsharded
from dipo_lightning.models.token_batch import IGNORED, TokenBatch, collate
from dipo_lightning.reference.choice import build_reference
from dipo_lightning.reference.references import ModelReference, Reference

TEMPLATES = (
    "{question}",
    "Please answer this: {question}",
    "{question} Answer in one sentence.",
    "I would like to know something. {question}",
)
"""Wordings of the forget questions that are trained on; evaluations ask others."""

SAMPLED_TOKENS = 32
"""Most tokens of an answer that is sampled during training."""
GENERATION_ROWS = 64
"""Most answers that are sampled at the same time."""


def general_prompts() -> list[str]:
    """Return the embedded everyday requests."""
    text = (files("dipo_lightning.methods") / "general_prompts.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def identifiers(question: str, shared: set[str]) -> set[str]:
    """Find the words of a question that tell whom or what it is about.

    These are its names and numbers that no retain row has; where there are none, its content words that no retain row
    has.

    Args:
        question: What is asked.
        shared: Words of the retain rows, in lower case.
    """
    found = words(question)
    own = [word for word in found[1:] if word.text not in shared and word.text not in FUNCTION_WORDS]
    names = {word.text for word in own if question[word.start].isupper() or any(sign.isdigit() for sign in word.text)}
    return names or {word.text for word in own}


def blind_target(reference: Tensor, blind: Tensor, private: Tensor, banned: Tensor) -> Tensor:
    """Make the preferred distribution of each position.

    Args:
        reference: (n, V) logits of the reference.
        blind: (n, V) its logits without sight of the subject.
        private: (n,) bool, positions of private values.
        banned: (n, V) bool, tokens that begin a private word; read at private positions only.

    Returns:
        (n, V) log-probabilities: the reference's own, and at private positions the blind ones without the banned
        tokens.
    """
    cut = blind.masked_fill(banned, torch.finfo(blind.dtype).min).log_softmax(-1)
    return torch.where(private[:, None], cut, reference.log_softmax(-1))


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL(target || policy) of each position.

    Args:
        target: (n, V) log-probabilities; a probability of 0 counts 0.
        logits: (n, V) the policy's.

    Returns:
        (n,) nats, differentiable in the logits.
    """
    return token_kl(logits, target)


def contrast_loss(target: Tensor, reference: Tensor, logits: Tensor, beta: float) -> Tensor:
    """DiPO's loss per token, with the reference's distribution as the dispreferred one.

    Args:
        target: (n, V) log-probabilities of the preferred distribution.
        reference: (n, V) logits of the reference.
        logits: (n, V) the policy's.
        beta: Inverse temperature.

    Returns:
        (n,) -2/beta log sigmoid(beta u).
    """
    difference = target.exp() - reference.softmax(-1)
    margin = (difference * (logits - reference)).sum(-1)
    return -2 / beta * logsigmoid(beta * margin)


def excess(logits: Tensor, labels: Tensor, ceiling: float) -> Tensor:
    """Return the amount by which the log-probability of each label lies above that of the ceiling.

    Args:
        logits: (n, V).
        labels: (n,) int64.
        ceiling: A probability.

    Returns:
        (n,) nats, 0 where the label is at or below the ceiling.
    """
    likelihood = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    return (likelihood - math.log(ceiling)).clamp(min=0)


@dataclass
class PrivateExample:
    """A prompt with an answer whose private tokens are known.

    Attributes:
        index: Row of the forget set.
        input_ids: Prompt and answer.
        labels: The answer's ids, -100 in the prompt.
        private: For each input token, whether it is part of a private value.
        visible: For each input token, 0 where the subject's name is masked out for the blind reference.
        banned: Tokens that begin a private word of the row.
        secret: Whether the marked tokens are the secret; those of a false variant are not.
    """

    index: int
    input_ids: list[int]
    labels: list[int]
    private: list[bool]
    visible: list[int]
    banned: list[int]
    secret: bool = True


class SelectiveModule(UnlearningModule):
    """Selective unlearning: private values of the forget answers go, their sentences and everything else stay.

    Needs rows of questions with answers. Private values are the rows' ``private`` values where the data has them, else
    the words of an answer that neither its question nor any retain row says.

    Args:
        pretrained: The model that must forget; also the reference.
        dispreferred: ``policy`` (a target that is approached, not passed) or ``reference`` (DiPO's margin per token).
        beta: Inverse temperature of the margin, for ``dispreferred: reference``.
        sentence_weight: Weight of the divergence from the reference at the other positions of the forget answers.
        ceiling: Probability down to which the true token of a private position is pushed.
        ceiling_weight: Weight of that push; 0 for none.
        general_weight: Weight of the divergence from the reference on its own answers to general questions; 0 for none.
        alternatives: Answers of the blind reference per forget row that are trained on as well; 0 for none.
        samples: Answers per forget row and wording that are sampled when the policy is asked.
        check_every: Optimiser steps between two such checks; 0 for none.
        stop: End the run at a check where no sample says a private value, and no value is likelier than the
            alternatives.
        retain_loss: ``kl`` (divergence from the reference), ``nll`` or ``none``.
        reference: ``live``, ``adapters_off`` (with LoRA) or ``auto``.
        **options: Those of `UnlearningModule`.
    """

    def __init__(
        self,
        pretrained: str,
        dispreferred: Literal["policy", "reference"] = "policy",
        beta: float = 0.5,
        sentence_weight: float = 1.0,
        ceiling: float = 1e-4,
        ceiling_weight: float = 0.2,
        general_weight: float = 1.0,
        alternatives: int = 3,
        samples: int = 6,
        check_every: int = 8,
        stop: bool = True,
        retain_loss: Literal["nll", "kl", "none"] = "kl",
        reference: Literal["auto", "live", "adapters_off"] = "auto",
        **options: Any,
    ) -> None:
        super().__init__(pretrained, retain_loss=retain_loss, reference=reference, **options)
        if not beta > 0:
            raise InputError(f"model.beta is {beta}; it must be above 0.")
        for name, value in (("alternatives", alternatives), ("samples", samples), ("check_every", check_every)):
            if value < 0:
                raise InputError(f"model.{name} is {value}; it must be 0 or more.")
        self.dispreferred, self.beta = dispreferred, beta
        if not 0 < ceiling < 1:
            raise InputError(f"model.ceiling is {ceiling}; it must be between 0 and 1.")
        self.sentence_weight, self.general_weight = sentence_weight, general_weight
        self.ceiling, self.ceiling_weight = ceiling, ceiling_weight
        self.alternatives, self.samples, self.check_every, self.stop = alternatives, samples, check_every, stop
        self.private: list[list[Span]] = []
        self.leaks: list[PrivateExample] = []
        self._wordings: list[list[PrivateExample]] = []  # by row, one for each template
        self._alternatives: list[PrivateExample] = []
        self._general: list[dict[str, Any]] = []
        self._endings: list[int] = []  # tokens that end a sentence or the turn
        self._blind: Answers | None = None
        self._current: list[PrivateExample] = []

    # Preparation, while the policy still is the reference.

    @property
    def reference_parts(self) -> list[str]:
        """All parts: the reference is what everything else is held to."""
        return ["forget", "retain", "general"]

    def make_reference(self) -> Reference:
        """Build a reference that runs forwards: of the blind view there is no cache."""
        name = "adapters_off" if self.lora is not None else "live"
        if self.reference_name not in ("auto", name):
            raise InputError(f"model.reference is {self.reference_name}; this method needs {name} or auto here.")
        return build_reference(self, name)

    def on_fit_start(self) -> None:
        """Find the private values, and let the reference answer what will be trained on beside the rows."""
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self._refuse_text(data.forget_rows)
        shared = vocabulary(text for row in data.retain_rows or () for text in (row["question"], row["answer"]))
        self.private = [self._private_spans(row, shared) for row in data.forget_rows]
        self._wordings = [
            [self._example(number, row, template, shared) for template in TEMPLATES]
            for number, row in enumerate(data.forget_rows)
        ]
        ends = [
            data.tokenizer(sign, add_special_tokens=False)["input_ids"] for sign in (".", " .", ",", "!", "?", "\n")
        ]
        self._endings = sorted({ids[-1] for ids in ends if ids} | set(data.style.stop_ids))
        assert isinstance(self.reference, ModelReference)
        with self.reference.frozen():
            self._alternatives = self._blind_answers(self.reference.model, shared)
            self._general = self._general_answers(self.reference.model) if self.general_weight else []
        count = sum(map(len, self.private))
        rank_zero_info(f"{count} private values in {len(self.private)} forget rows")

    @staticmethod
    def _refuse_text(rows: Sequence[Mapping[str, Any]]) -> None:
        if any("question" not in row for row in rows):
            raise InputError(
                "SelectiveModule unlearns answers to questions; for running text use DiPOModule with reduction: mean."
            )

    @staticmethod
    def _private_spans(row: Mapping[str, Any], shared: set[str]) -> list[Span]:
        if row.get("private"):
            return spans_of_values(row["answer"], row["private"])
        return find_private(row["question"], row["answer"], shared)

    def _example(self, number: int, row: Mapping[str, Any], template: str, shared: set[str]) -> PrivateExample:
        """A row under one wording of its question."""
        style = self.trainer.datamodule.style  # type: ignore[attr-defined]
        prompt = style.prompt(template.replace("{question}", row["question"]))
        ids, labels = style.join(prompt, row["answer"])
        return self._marked(number, prompt, ids, labels, row["answer"], self.private[number], shared)

    def _marked(
        self,
        number: int,
        prompt: list[int],
        ids: list[int],
        labels: list[int],
        answer: str,
        spans: Sequence[Span],
        shared: set[str],
    ) -> PrivateExample:
        """An example with its private tokens and the subject's tokens marked."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        row = data.forget_rows[number]
        tokenizer = data.tokenizer
        places = token_places(tokenizer, ids[len(prompt) :], answer)
        private = [False] * len(prompt) + token_flags(places, spans)
        hidden = identifiers(row["question"], shared)
        whole = tokenizer.decode(ids)
        named = [Span(word.start, word.end) for word in words(whole) if word.text in hidden]
        visible = [int(not flag) for flag in token_flags(token_places(tokenizer, ids, whole), named)]
        secret = [row["answer"][span.start : span.end] for span in self.private[number]]
        return PrivateExample(number, ids, labels, private, visible, first_tokens(tokenizer, secret))

    def _blind_answers(self, model: nn.Module, shared: set[str]) -> list[PrivateExample]:
        """Answers that the reference gives without sight of the subject and without a private word: false variants."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        asked, begun = [], []
        for number, spans in enumerate(self.private if self.alternatives else []):
            example = self._wordings[number][0]
            if spans:
                asked.append(example)
                begun.append(example.private.index(True))
        said = continuations(
            model,
            [example.input_ids[:first] for example, first in zip(asked, begun, strict=True)],
            style=data.style,
            samples=2 * self.alternatives,
            seed=data.seed,
            visible=[example.visible[:first] for example, first in zip(asked, begun, strict=True)],
            banned=[example.banned for example in asked],
        )
        found = []
        for example, first, answers in zip(asked, begun, said, strict=True):
            known = {word.text for word in self._secret_words(example.index)}
            fresh = [ids for ids in dict.fromkeys(map(tuple, answers)) if self._is_variant(ids, known)]
            found += [self._continued(example, first, list(ids), shared) for ids in fresh[: self.alternatives]]
        return found

    def _continued(self, example: PrivateExample, first: int, ids: list[int], shared: set[str]) -> PrivateExample:
        """The beginning of an example's answer with another end, all of which counts as private."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        start = next(place for place, label in enumerate(example.labels) if label != IGNORED)
        answer = example.input_ids[start:first] + ids + data.style.stop_ids[:1]
        whole = example.input_ids[:start] + answer
        labels = [IGNORED] * start + answer
        text = data.tokenizer.decode(whole)
        hidden = identifiers(data.forget_rows[example.index]["question"], shared)
        named = [Span(word.start, word.end) for word in words(text) if word.text in hidden]
        visible = [int(not flag) for flag in token_flags(token_places(data.tokenizer, whole, text), named)]
        private = [False] * first + [True] * (len(whole) - first)
        return PrivateExample(example.index, whole, labels, private, visible, example.banned, secret=False)

    def _general_answers(self, model: nn.Module) -> list[dict[str, Any]]:
        """The reference's own greedy answers to the general prompts."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        prompts = [data.style.prompt(prompt) for prompt in general_prompts()]
        said = continuations(model, prompts, style=data.style, samples=1, seed=data.seed, greedy=True)
        return [
            {"input_ids": prompt + ids, "labels": [IGNORED] * len(prompt) + ids, "index": number}
            for number, (prompt, (ids,)) in enumerate(zip(prompts, said, strict=True))
            if ids
        ]

    def _secret_words(self, number: int) -> list[Any]:
        answer = self.trainer.datamodule.forget_rows[number]["answer"]  # type: ignore[attr-defined]
        return [word for span in self.private[number] for word in words(answer[span.start : span.end])]

    def _is_variant(self, ids: Sequence[int], known: set[str]) -> bool:
        """Tell whether an answer says some word, and no private one."""
        said = vocabulary([self.trainer.datamodule.tokenizer.decode(list(ids))])  # type: ignore[attr-defined]
        return bool(said) and said.isdisjoint(known)

    # One step.

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Train on the batch's rows in one wording each, on false variants, leaks and general answers."""
        draw = torch.Generator().manual_seed(
            (self.trainer.datamodule.seed * 1_000_003 + self.trainer.global_step) * 101 + batch_idx  # type: ignore[attr-defined]
        )
        numbers = batch["forget"]["index"].tolist()
        size = len(numbers)
        wording = self.trainer.current_epoch
        rows = [self._wordings[number][(wording + number) % len(TEMPLATES)] for number in numbers]
        half = max(1, size // 2)
        self._current = rows + drawn(self._alternatives, half, draw) + drawn(self.leaks, half, draw)
        parts = {"forget": self._collated([asdict(example) for example in self._current])}
        if "retain" in batch:
            parts["retain"] = batch["retain"]
        if self._general:
            parts["general"] = self._collated(drawn(self._general, half, draw))
        return super().training_step(parts, batch_idx)

    def _collated(self, examples: Sequence[Mapping[str, Any]]) -> TokenBatch:
        made = collate(examples, self.trainer.datamodule.tokenizer.pad_token_id)  # type: ignore[attr-defined]
        return {name: tensor.to(self.device) for name, tensor in made.items()}

    def parts(self, batch: dict[str, Any]) -> list[str]:
        """Also the general answers."""
        return [*super().parts(batch), *(["general"] if "general" in batch else [])]

    def read_reference(self, parts: dict[str, TokenBatch]) -> None:
        """Also get the blind reference's view of the forget answers."""
        super().read_reference(parts)
        forget = parts["forget"]
        sight = torch.zeros_like(forget["attention_mask"])
        for place, example in enumerate(self._current):
            sight[place, : len(example.visible)] = torch.tensor(example.visible, device=sight.device)
        blind = forget | {"attention_mask": forget["attention_mask"] * sight}
        assert self.reference is not None
        found = self.reference.answers({"forget": blind}, from_hidden=self.from_hidden, chunk_size=self.chunk_size)
        self._blind = found["forget"]

    def forget_terms(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return the weighted forget term, and its parts: private values, sentences, general answers."""
        forget, reference = answers["forget"], self.reference_answers(answers["forget"])
        private = self._flags(forget)
        assert self._blind is not None

        def values(positions: Tensor, policy: Tensor, frozen: Tensor, blind: Tensor) -> tuple[Tensor, Tensor]:
            target = blind_target(frozen, blind, private[positions], self._banned(forget, positions, blind.shape[-1]))
            found = divergence(target, policy)
            if self.dispreferred == "reference":
                pushed = contrast_loss(target, frozen, policy, self.beta)
                found = torch.where(private[positions], pushed, found)
            return found, excess(policy, forget.labels[positions], self.ceiling)

        tokens, above = over_logits(values, forget, reference, self._blind)
        secret = torch.tensor([example.secret for example in self._current], device=private.device)
        terms = {
            "private": mean_of(tokens, private),
            "above_ceiling": mean_of(above, private & secret[forget.sequence_ids]),
            "sentence": mean_of(tokens, ~private),
        }
        total = terms["private"] + self.ceiling_weight * terms["above_ceiling"]
        total = total + self.sentence_weight * terms["sentence"]
        if "general" in answers:
            general = answers["general"]
            (kept,) = over_logits(
                lambda _, policy, frozen: (token_kl(policy, frozen),), general, self.reference_answers(general)
            )
            terms["general"] = kept.mean()
            total = total + self.general_weight * terms["general"]
        return {"forget": total, **{name: term.detach() for name, term in terms.items()}}

    def _flags(self, forget: Answers) -> Tensor:
        """(N,) bool, the private ones among the supervised positions."""
        flags = [
            flag
            for example in self._current
            for flag, label in zip(example.private[1:], example.labels[1:], strict=True)
            if label != IGNORED
        ]
        return torch.tensor(flags, dtype=torch.bool, device=forget.labels.device)

    def _banned(self, forget: Answers, positions: Tensor, vocabulary_size: int) -> Tensor:
        """(n, V) bool: the private words' first tokens and the true token; where a value begins also ends of a text."""
        banned = torch.zeros(len(positions), vocabulary_size, dtype=torch.bool, device=positions.device)
        for place, sequence in enumerate(forget.sequence_ids[positions].tolist()):
            banned[place, self._current[sequence].banned] = True
        secret = torch.tensor([example.secret for example in self._current], device=positions.device)
        labels = forget.labels[positions][:, None]
        banned |= torch.zeros_like(banned).scatter(1, labels, secret[forget.sequence_ids[positions]][:, None])
        private = self._flags(forget)
        begins = private & ~private.roll(1)
        banned[:, self._endings] |= begins[positions][:, None]
        return banned

    # Asking the policy.

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ask the policy every few steps; what it says becomes training rows, and the run may end."""
        step = self.trainer.global_step
        accumulated = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if self.check_every and step and step % self.check_every == 0 and accumulated:
            self.ask()

    def ask(self) -> None:
        """Sample the policy, keep the answers that say a private value, and stop where nothing is left to forget."""
        assert self.policy is not None
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        asked = [example for wordings in self._wordings for example in wordings[:2]]
        starts = [next(i for i, label in enumerate(one.labels) if label != IGNORED) for one in asked]
        said = continuations(
            self.policy,
            [example.input_ids[:start] for example, start in zip(asked, starts, strict=True)],
            style=data.style,
            samples=self.samples,
            seed=data.seed + self.trainer.global_step,
        )
        retain = data.retain_rows or ()
        shared = vocabulary(text for row in retain for text in (row["question"], row["answer"]))
        found = [
            leak
            for example, start, answers in zip(asked, starts, said, strict=True)
            for ids in answers
            if (leak := self._leak(example, start, ids, shared)) is not None
        ]
        self.leaks = (found + self.leaks)[: 2 * len(asked)]
        likelier = self._values_that_are_likelier()
        total = len(asked) * self.samples
        self.log("train/leaks", float(len(found)), logger=True)
        rank_zero_info(
            f"step {self.trainer.global_step}: {len(found)} of {total} sampled answers say a private value; "
            f"{likelier} of {len(self.private)} rows are likelier than their false variants"
        )
        if self.stop and not found and not likelier:
            self.trainer.should_stop = True

    def _leak(self, example: PrivateExample, start: int, ids: list[int], shared: set[str]) -> PrivateExample | None:
        """An answer that says a private word, with these words as its private values; else None."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        known = {word.text for word in self._secret_words(example.index)} - FUNCTION_WORDS
        text = data.tokenizer.decode(ids)
        spans = [Span(word.start, word.end) for word in words(text) if word.text in known]
        if not spans:
            return None
        prompt = example.input_ids[:start]
        answer = ids + data.style.stop_ids[:1]
        labels = [IGNORED] * start + answer
        return self._marked(example.index, prompt, prompt + answer, labels, text, spans, shared)

    def _values_that_are_likelier(self) -> int:
        """Number of rows whose private tokens are likelier than those of all its false variants."""
        assert self.policy is not None
        originals = [wordings[0] for wordings in self._wordings]
        examples = [*originals, *self._alternatives]
        scores = score(self.policy, [(one.input_ids, one.labels) for one in examples], device=self.device)
        likelihood = []
        for example, found in zip(examples, scores, strict=True):
            flags = [f for f, label in zip(example.private, example.labels, strict=True) if label != IGNORED]
            chosen = found.logprobs[torch.tensor(flags, dtype=torch.bool)]
            likelihood.append(float(chosen.double().mean()) if len(chosen) else float("-inf"))
        best: dict[int, float] = {}
        for example, value in zip(examples[len(originals) :], likelihood[len(originals) :], strict=True):
            best[example.index] = max(best.get(example.index, float("-inf")), value)
        own = zip(originals, likelihood, strict=False)
        return sum(value > best[example.index] for example, value in own if example.index in best)

    # What a checkpoint holds: plain values.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the answers that leaked."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["leaks"] = [asdict(leak) for leak in self.leaks]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also take back the answers that leaked."""
        super().on_load_checkpoint(checkpoint)
        self.leaks = [PrivateExample(**leak) for leak in checkpoint.get("leaks", [])]


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen ones of (N,) values; 0, with a gradient of 0, where none is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def drawn(pool: Sequence[Any], count: int, generator: torch.Generator) -> list[Any]:
    """Draw up to ``count`` different entries of a pool."""
    return [pool[i] for i in torch.randperm(len(pool), generator=generator)[:count].tolist()]


def first_tokens(tokenizer: Any, values: Sequence[str]) -> list[int]:
    """Return the tokens that begin a word of the values: with and without a space, capitalised or not."""
    found: set[int] = set()
    for word in {word.text for value in values for word in words(value)} - FUNCTION_WORDS:
        for form in (word, word.capitalize(), word.upper()):
            for text in (form, f" {form}"):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                if ids and len(tokenizer.decode(ids[:1]).strip()) > 1:
                    found.add(ids[0])
    return sorted(found)


@torch.no_grad()
def continuations(
    model: nn.Module,
    prompts: Sequence[list[int]],
    *,
    style: Any,
    samples: int,
    seed: int,
    greedy: bool = False,
    visible: Sequence[Sequence[int]] | None = None,
    banned: Sequence[Sequence[int]] | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = SAMPLED_TOKENS,
) -> list[list[list[int]]]:
    """Continue prompts by sampling, or greedily; the same on every process.

    Args:
        model: A ``transformers`` causal LM, sharded or not.
        prompts: Token ids, none empty.
        style: Prompt style, for the tokens that end an answer.
        samples: Continuations per prompt.
        seed: Of the random numbers.
        greedy: Take the likeliest token.
        visible: For each prompt, 0 at the tokens that the model must not see.
        banned: For each prompt, tokens that it must not say.
        temperature: Of the sampling.
        max_new_tokens: Most tokens of a continuation.

    Returns:
        Token ids of each continuation of each prompt, cut before a stop id.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    per = max(1, GENERATION_ROWS // max(1, samples))
    said: dict[int, list[list[int]]] = {}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluation_mode(model), plain_settings(model), unsharded(model):
        torch.manual_seed(seed)
        for start in range(0, len(order), per):
            chosen = order[start : start + per]
            length = max(len(prompts[number]) for number in chosen)
            ids = torch.full((len(chosen), length), style.stop_ids[0], dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, number in enumerate(chosen):
                size = len(prompts[number])
                ids[place, length - size :] = torch.tensor(prompts[number])
                mask[place, length - size :] = 1 if visible is None else torch.tensor(visible[number])
            limits = [] if banned is None else [_Banned([banned[n] for n in chosen for _ in range(samples)])]
            made = model.generate(  # type: ignore[operator]
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                num_return_sequences=samples,
                do_sample=not greedy,
                temperature=None if greedy else temperature,
                top_k=None if greedy else 0,
                top_p=None if greedy else 1.0,
                eos_token_id=style.stop_ids,
                pad_token_id=style.stop_ids[0],
                logits_processor=limits,
            )
            for place, tokens in enumerate(made[:, length:].tolist()):
                stop = next((i for i, token in enumerate(tokens) if token in style.stop_ids), len(tokens))
                said.setdefault(chosen[place // samples], []).append(tokens[:stop])
    return [said[number] for number in range(len(prompts))]


class _Banned:
    """Logits processor that keeps each sequence from its own list of tokens."""

    def __init__(self, tokens: Sequence[Sequence[int]]) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for place, tokens in enumerate(self.tokens):
            scores[place, list(tokens)] = torch.finfo(scores.dtype).min
        return scores
