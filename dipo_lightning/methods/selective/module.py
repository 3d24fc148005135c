r"""Selective unlearning, which forgets the private values of an answer and preserves its sentence and all else.

A loss over whole answers is reduced most easily by making the words that open every answer unlikely, and the secret
survives. Here each answer position is of one of two kinds. At a *private* position t (a token of a private value) the
preferred distribution is that of the reference model without sight of the question's subject:

    pi_w,t = softmax(h_blind,t, private words at -inf)

where h_blind are the reference model's logits with the subject's name masked out of its attention. Left out are tokens
below 5 % of the likeliest one's probability and, where the private token begins a word, tokens that would continue one
("the" + "atre"): the blind view may be all but sure of the banned token, and its tail is not made of words. At the
other positions of forget answers it is the reference model's distribution without the private words. Everywhere else it
is the reference model's distribution itself: on retain answers, on its own answers to general questions and to the
forget questions about the subjects of retain rows, and on its own running text.

At private positions the dispreferred distribution is the policy's own (``dispreferred: policy``): the gradient of the
DiPO margin <pi_w - pi_theta, h_theta> is then that of KL(pi_w || pi_theta), which vanishes once the policy answers like
a model that never knew. With ``dispreferred: reference`` it is the reference model's, and the loss is DiPO's
-2/beta log sigmoid(beta u_t) per token. Derived here from `dipo_lightning.methods.dipo.loss`; the pair is this
package's.

The gradient of a divergence is small for a token of probability 0.02, which may still appear in twenty samples. So
another term lowers the probability of the private words down to ``ceiling``.

All terms but the retain term are on rows drawn anew for each batch, and are means over that batch's own positions.

The policy is also sampled during training (`dipo_lightning.methods.selective.checks`): its riskiest answers become
training rows at once, and the run ends when nothing is left to forget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from random import Random
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from dipo_lightning.data.encoding import PromptStyle, TextStyle
from dipo_lightning.data.files import shipped_json
from dipo_lightning.data.private import NO_VALUES
from dipo_lightning.errors import InputError, check_numbers, check_positive
from dipo_lightning.evaluation.generation import generate
from dipo_lightning.evaluation.sampling import answer_room, sample, torch_seed
from dipo_lightning.losses.likelihood import token_kl
from dipo_lightning.methods.selective.checks import LEAST_CHECKS, NOTHING_LEFT, QUIET_CHECKS, RISK, Check
from dipo_lightning.methods.selective.examples import MOST_NEIGHBOURS, ExampleMaker, PrivateExample
from dipo_lightning.methods.selective.targets import (
    MIN_P,
    and_repetition,
    blind_target,
    contrast_loss,
    excess,
    mean_of,
    padded,
)
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import (
    IGNORED,
    Answers,
    TokenBatch,
    collate,
    divergence,
    over_logits,
    supervised_positions,
)
from dipo_lightning.models.distributed import evaluation_mode, unsharded
from dipo_lightning.models.inspection import vocabulary_size
from dipo_lightning.reference.blind import blind_answers, check_blindness, forward_reference
from dipo_lightning.reference.references import ModelReference, Reference

TEMPLATES = {
    "{question}": "{answer}",
    "Please answer this: {question}": "{answer}",
    "{question} Answer in one sentence.": "{answer}",
    "I would like to know something. {question}": "{answer}",
    "Tell me something about {subject}.": "{answer}",
    "{subject}: {topic}?": "The {topic} of {subject} is {values}.",
}
"""Wordings of the forget questions in training, and their answers; evaluations use others.

The last two keep only the question's subject, or that and its topic, to cover unforeseen wordings of question and
answer.
"""

GENERAL_TOKENS, GENERAL_SAMPLES = 32, 2
"""Length of the reference model's answers to general prompts, and number of sampled ones beside the greedy one."""
TEXT_TOKENS, TEXT_SAMPLES = 64, 2
"""Length of the reference model's continuations of the embedded openings, and number of sampled ones beside the greedy
one."""
NEIGHBOUR_SAMPLES = 1
"""Number of sampled answers beside the greedy one to each forget question about another subject."""
VARIANT_SHARE, LEAK_SHARE, GENERAL_SHARE, NEIGHBOUR_SHARE = 0.5, 1.0, 1.0, 1.0
"""Further rows per forget row of a step."""
FEWEST_GENERAL = 16
"""Minimum number of general rows per step, so that a single deletion request does not damage the model."""


def general_prompts() -> list[str]:
    """Return the embedded everyday requests, none of which is a probe of an evaluation."""
    return shipped_json(__package__, "general_prompts")


def text_openings() -> list[str]:
    """Return the embedded openings of ordinary prose, none of which opens a probe of an evaluation."""
    return shipped_json(__package__, "text_openings")


class SelectiveModule(UnlearningModule):
    """Selective unlearning, which forgets private values of the answers and preserves their sentences and all else.

    Needs rows of questions with answers. Private values are the rows' ``private`` values if the data has them, or else
    the words of an answer that occur neither in its question nor in the retain rows.

    Args:
        pretrained: The model that must forget; also the reference model.
        dispreferred: ``policy`` (the policy approaches the preferred distribution and stops there) or ``reference``
            (DiPO's loss per token, which pushes beyond it).
        beta: Inverse temperature of the margin, for ``dispreferred: reference``.
        sentence_weight: Weight of the divergence from the reference model at the other positions of forget answers.
        ceiling: Probability to which the private words are lowered at each position of an answer, all of them together.
        ceiling_weight: Weight of that term; 0 for none.
        general_weight: Weight of the divergence from the reference model on its own answers to general questions and
            to the forget questions about subjects of retain rows, and on its own running text; 0 for none.
        alternatives: Number of answers of the blind reference model per forget row to train on; 0 for none.
        samples: Number of sampled answers per forget row and wording in a check of the policy.
        check_every: Optimiser steps between two checks; the last step is checked too; 0 for no checks.
        stop: End the run at a check, from the fourth on, where no sample contains a private value, at most one in 5,000
            answers is expected to, no answer's first value is likelier than 0.001, no answer's values are likelier than
            its false variants, and a thorough check confirms all this; or at the eighth check in succession that finds
            fault with nothing but the expected number.
        retain_loss: ``kl`` (divergence from the reference model), ``nll`` or ``none``.
        reference: ``live``, ``adapters_off`` (with LoRA) or ``auto``.
        **options: Those of `UnlearningModule`.
    """

    caches_reference: ClassVar[bool] = False

    def __init__(
        self,
        pretrained: str,
        dispreferred: Literal["policy", "reference"] = "policy",
        beta: float = 0.5,
        sentence_weight: float = 1.0,
        ceiling: float = 1e-4,
        ceiling_weight: float = 1.0,
        general_weight: float = 2.0,
        alternatives: int = 3,
        samples: int = 6,
        check_every: int = 8,
        stop: bool = True,
        retain_loss: Literal["nll", "kl", "none"] = "kl",
        reference: Literal["auto", "live", "adapters_off"] = "auto",
        **options: Any,
    ) -> None:
        super().__init__(pretrained, retain_loss=retain_loss, reference=reference, **options)
        check_positive("model", {"beta": beta})
        numbers = {"alternatives": alternatives, "samples": samples, "check_every": check_every}
        check_numbers("model", numbers, least=0)
        if not 0 < ceiling < 1:
            raise InputError(f"model.ceiling is {ceiling}; it must be between 0 and 1.")
        self.dispreferred, self.beta = dispreferred, beta
        self.sentence_weight, self.general_weight = sentence_weight, general_weight
        self.ceiling, self.ceiling_weight = ceiling, ceiling_weight
        self.alternatives, self.samples, self.check_every, self.stop = alternatives, samples, check_every, stop
        self.leaks: list[PrivateExample] = []
        self._maker: ExampleMaker
        self._wordings: list[list[PrivateExample]] = []  # by trained row, one for each template
        self._variants: list[PrivateExample] = []
        self._general: list[dict[str, Any]] = []
        self._neighbours: list[dict[str, Any]] = []
        self._endings: list[int] = []
        self._continuing: list[int] = []
        self._checked = 0  # the step of the last check
        self._quiet = 0  # checks in succession without a leak
        self._ending = ""  # what ended the run
        self._blind: Answers | None = None
        self._current: list[PrivateExample] = []

    # Preparation, while the policy still is the reference.

    @property
    def needs_retain_rows(self) -> bool:
        """False if the general rows, which the reference model writes, hold the model's other abilities."""
        return not self.general_weight

    @property
    def reference_parts(self) -> list[str]:
        """All parts, since every term is a divergence from the reference model."""
        return ["forget", "retain", "general"]

    def make_reference(self) -> Reference:
        """Build a reference model that runs forward passes, since the blind view is not cached."""
        return forward_reference(self)

    def inspect(self, model: nn.Module) -> None:
        """Also check that masked words are invisible to the model."""
        super().inspect(model)
        check_blindness(model, type(self).__name__)

    def on_fit_start(self) -> None:
        """Make the training rows beside those of the data module."""
        super().on_fit_start()
        if self.trainer.ckpt_path is None:
            self._checked, self._quiet, self._ending = 0, 0, ""
        self.make_examples()

    def make_examples(self) -> None:
        """Find the private values, and let the reference model generate further training answers."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if any("question" not in row for row in data.forget_rows):
            raise InputError(
                "SelectiveModule unlearns answers to questions; for running text use DiPOModule with reduction: mean."
            )

        def kept() -> Iterator[Mapping[str, Any]]:
            return (row for row in data.retain_rows or () if "question" in row)

        self._maker = maker = ExampleMaker(data.trained_rows, kept(), data.style, data.max_length)
        if not any(maker.spans):
            raise InputError(NO_VALUES)
        self._wordings = [maker.wordings(i, TEMPLATES) for i in range(len(maker.rows))]
        self._endings = maker.endings()
        assert self.policy is not None
        self._continuing = maker.continuing(vocabulary_size(self.policy))
        assert isinstance(self.frozen_reference, ModelReference)
        if self.device.type == "cpu" and not self.sharded:
            self.frozen_reference.remember()
        with self.frozen_reference.frozen():
            self._variants = self._blind_answers(self.frozen_reference.model)
            if self.general_weight:
                draw = torch.Generator().manual_seed(data.seed)
                others = drawn(maker.neighbours(kept()), MOST_NEIGHBOURS, draw)
                self._write_kept(self.frozen_reference.model, data.style, others)
        rank_zero_info(f"{sum(map(len, maker.spans))} private values in {len(maker.rows)} forget rows")

    def on_fit_end(self) -> None:
        """Free the reference's memory."""
        super().on_fit_end()
        assert isinstance(self.frozen_reference, ModelReference)
        self.frozen_reference.stop_remembering()

    def _blind_answers(self, model: nn.Module) -> list[PrivateExample]:
        """False variants: answers of the reference model without sight of the subject and without private words."""
        asked = [wordings[0] for wordings in self._wordings if self.alternatives and any(wordings[0].private)]
        begun = [example.private.index(True) for example in asked]
        longest = max((len(example.flags) for example in asked), default=0)
        said = self._sampled(
            model,
            [example.input_ids[:first] for example, first in zip(asked, begun, strict=True)],
            2 * self.alternatives,
            min(answer_room(longest), longest + 8),
            "variants",
            visible=[example.visible[:first] for example, first in zip(asked, begun, strict=True)],
            banned=[self._maker.banned[example.index] for example in asked],
            banned_first=[
                [] if example.input_ids[first] in self._maker.edges.continuing else self._continuing
                for example, first in zip(asked, begun, strict=True)
            ],
            min_p=MIN_P,
        )
        found = []
        for example, answers in zip(asked, said, strict=True):
            fresh = [self._maker.variant(example, list(ids)) for ids in dict.fromkeys(map(tuple, answers))]
            found += [one for one in fresh if one is not None][: self.alternatives]
        return found

    def _write_kept(self, model: nn.Module, style: PromptStyle, others: Sequence[str]) -> None:
        """Let the reference model write texts to preserve: general answers, running text, answers on other subjects."""
        text = TextStyle(style.tokenizer, end=False)
        general = list(map(style.prompt, general_prompts()))
        self._general = self._continuations(model, general, "general", GENERAL_SAMPLES)
        openings = list(map(text.prompt, text_openings()))
        self._general += self._continuations(model, openings, "text", TEXT_SAMPLES, TEXT_TOKENS)
        self._neighbours = self._continuations(model, list(map(style.prompt, others)), "neighbours", NEIGHBOUR_SAMPLES)

    def _continuations(
        self, model: nn.Module, prompts: Sequence[list[int]], purpose: str, samples: int, most: int = GENERAL_TOKENS
    ) -> list[dict[str, Any]]:
        """A greedy continuation of each prompt by the reference model and some samples, cut to ``max_length``."""
        cut = slice(self._maker.max_length)
        greedy = generate(model, prompts, max_new_tokens=most, stop_ids=self._maker.style.stop_ids)
        sampled = self._sampled(model, prompts, samples, most, purpose)
        found = [
            (number, [*prompt, *ids][cut], [*[IGNORED] * len(prompt), *ids][cut])
            for number, (prompt, first, others) in enumerate(zip(prompts, greedy, sampled, strict=True))
            for ids in dict.fromkeys(map(tuple, [first, *others]))
        ]
        return [
            {"input_ids": ids, "labels": labels, "index": number}
            for number, ids, labels in found
            if len(ids) > len(prompts[number])
        ]

    def _sampled(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        samples: int,
        most: int | None = None,
        purpose: str = "",
        **options: Any,
    ) -> list[list[list[int]]]:
        """Sampled continuations of prompts, by default somewhat longer than the answers; equal on every process.

        Each combination of seed, step, purpose and prompt has random numbers of its own: with equal ones, similar
        prompts get similar answers, and many samples tell hardly more than a few.
        """
        longest = max((len(wordings[0].flags) for wordings in self._wordings), default=0)
        stream = f"{self.trainer.datamodule.seed} {self.trainer.global_step} {purpose}"  # type: ignore[attr-defined]
        with evaluation_mode(model), unsharded(model):
            said = sample(
                model,
                prompts,
                samples=samples,
                max_new_tokens=most or answer_room(longest),
                stop_ids=self._maker.style.stop_ids,
                seeds=[Random(f"{stream} {number}").getrandbits(63) for number in range(len(prompts))],
                **options,
            )
        return self.trainer.strategy.broadcast(said)

    # One step.

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Train on the batch's rows in one wording each, and on false variants, leaks and general answers."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        moment = data.seed * 1_000_003 + self.trainer.global_step
        seed = torch_seed((moment * 101 + batch_idx) * 1009 + self.global_rank)
        draw = torch.Generator().manual_seed(seed)
        numbers = [data.place(index) for index in batch["forget"]["index"].tolist()]
        wording = self.trainer.current_epoch
        rows = [self._wordings[number][(wording + number) % len(TEMPLATES)] for number in numbers]
        variants = drawn(self._variants, max(1, round(VARIANT_SHARE * len(rows))), draw)
        leaks = drawn(self.leaks, max(1, round(LEAK_SHARE * len(rows))), draw)
        general = drawn(self._general, max(FEWEST_GENERAL, round(GENERAL_SHARE * len(rows))), draw)
        general += drawn(self._neighbours, max(1, round(NEIGHBOUR_SHARE * len(rows))), draw)
        self._current = rows + variants + leaks
        parts = {"forget": self._collated([asdict(example) for example in self._current])}
        if "retain" in batch:
            parts["retain"] = batch["retain"]
        if general:
            parts["general"] = self._collated(general)
        return super().training_step({**parts, "denominators": self._denominators(batch, parts)}, batch_idx)

    def _denominators(self, batch: dict[str, Any], parts: Mapping[str, TokenBatch]) -> dict[str, float] | None:
        """Return the retain term's count over the global batch, and this batch's own counts of the drawn rows."""
        counts = batch.get("denominators")
        if not counts or "retain" not in counts:
            return None
        own = {part: float(supervised_positions(rows["labels"]).sum().clamp(min=1)) for part, rows in parts.items()}
        return {**own, "retain": counts["retain"], "rows": float(len(self._current))}

    def _collated(self, examples: Sequence[Mapping[str, Any]]) -> TokenBatch:
        made = collate(examples, self.trainer.datamodule.tokenizer.pad_token_id)  # type: ignore[attr-defined]
        return {name: tensor.to(self.device) for name, tensor in made.items()}

    def parts(self, batch: dict[str, Any]) -> list[str]:
        """Return the parts with the general answers."""
        return [*super().parts(batch), *(["general"] if "general" in batch else [])]

    def read_reference(self, parts: dict[str, TokenBatch]) -> None:
        """Also read the blind reference model's view of the forget answers."""
        super().read_reference(parts)
        sight = [example.visible for example in self._current]
        assert self.frozen_reference is not None
        form: Any = {"from_hidden": self.from_hidden, "chunk_size": self.chunk_size}
        self._blind = blind_answers(self.frozen_reference, parts["forget"], sight, **form)

    def forget_terms(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return the weighted forget term and its parts: private values, sentences, general answers."""
        forget, reference = answers["forget"], self.reference_answers(answers["forget"])
        device = forget.labels.device
        private = torch.tensor([flag for example in self._current for flag in example.flags], device=device)
        starts = [flag and not before for one in self._current for before, flag in pairwise([False, *one.flags])]
        begins = torch.tensor(starts, device=device)
        more = padded([tokens for example in self._current for tokens in self._maker.completing(example)]).to(device)
        continuing = torch.tensor(self._continuing, dtype=torch.long, device=device)
        new_word = private & ~torch.isin(forget.labels, continuing)
        same = forget.sequence_ids == forget.sequence_ids.roll(1)
        same[:1] = False  # nothing precedes the first position, even if there is no other sequence
        before = torch.where(same & private, forget.labels.roll(1), IGNORED)
        assert self._blind is not None

        def values(positions: Tensor, policy: Tensor, frozen: Tensor, blind: Tensor) -> tuple[Tensor, Tensor]:
            secret = self._secret_tokens(forget, positions, private[positions], more[positions], policy.shape[-1])
            banned = secret.clone()
            banned[:, self._endings] |= begins[positions][:, None]  # an answer that ends there says nothing
            inside = torch.zeros_like(banned[0]).index_fill(0, continuing, True)
            banned |= new_word[positions][:, None] & inside
            banned = and_repetition(banned, before[positions])
            target = blind_target(frozen, blind, private[positions], banned)
            found = token_kl(policy, target)
            if self.dispreferred == "reference":
                pushed = contrast_loss(target, frozen, policy, self.beta)
                found = torch.where(private[positions], pushed, found)
            return found, excess(policy, secret, self.ceiling)

        tokens, above = over_logits(values, forget, reference, self._blind)
        terms = {
            "private": mean_of(tokens, private),
            "above_ceiling": above.sum() / private.sum().clamp(min=1),
            "sentence": mean_of(tokens, ~private),
        }
        total = terms["private"] + self.ceiling_weight * terms["above_ceiling"]
        total = total + self.sentence_weight * terms["sentence"]
        if "general" in answers:
            general = answers["general"]
            terms["general"] = divergence(general, self.reference_answers(general)) / general.token_denominator
            total = total + self.general_weight * terms["general"]
        return {"forget": total, **{name: term.detach() for name, term in terms.items()}}

    def _secret_tokens(
        self, forget: Answers, positions: Tensor, private: Tensor, completing: Tensor, size: int
    ) -> Tensor:
        """Return (n, V) bool, the tokens that begin or continue a private word or number, and the true private ones.

        At other positions the true token is excluded, even if a private word begins with it.
        """
        owners = forget.sequence_ids[positions]
        by_sequence = torch.zeros(len(self._current), size, dtype=torch.bool, device=positions.device)
        for place, example in enumerate(self._current):
            by_sequence[place, self._maker.banned[example.index]] = True
        secret = by_sequence[owners]
        rows, slots = (completing >= 0).nonzero(as_tuple=True)
        secret[rows, completing[rows, slots]] = True
        known = torch.tensor([example.secret for example in self._current], device=positions.device)[owners]
        labels = forget.labels[positions][:, None]
        true = torch.where(private, secret.gather(1, labels)[:, 0] | known, False)
        return secret.scatter(1, labels, true[:, None])

    # Checks of the policy.

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return the callback that checks the policy."""
        return [CheckPolicy()]

    def check(self) -> None:
        """Check the policy every few steps and at the end; leaked answers become training rows; the run may end."""
        trainer, step = self.trainer, self.trainer.global_step
        ends = step == trainer.max_steps or (trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs)
        due = self.check_every and (not step % self.check_every or ends)
        if due and step and step != self._checked:
            self._checked = step
            self.ask(math.ceil(step / self.check_every))

    def ask(self, number: int) -> None:
        """Sample the policy, keep the riskiest answers, and stop the run if nothing is left to forget.

        Args:
            number: Number of the check, which selects its two wordings.
        """
        assert self.policy is not None
        check = Check(
            self.policy, self._maker, self._wordings, self._variants, self.device, self.trainer.global_step,
            self._sampled, self.trainer.strategy.broadcast,
        )  # fmt: skip
        two = [number % len(TEMPLATES), (number + 1) % len(TEMPLATES)]
        remaining, risk = check.ask([wordings[i] for wordings in self._wordings for i in two], self.samples)
        early = number < LEAST_CHECKS
        left = remaining + min(risk, 0.99) + early  # the number of remaining values decides first
        if self.stop and not early and not remaining and risk <= RISK:
            left = check.ask_thoroughly()
        self._quiet = 0 if remaining or check.leaks else self._quiet + 1
        if self.stop and (not left or self._quiet >= QUIET_CHECKS):
            self.trainer.should_stop = True
            self._ending = f"{self._quiet} checks in succession found no leak" if left else NOTHING_LEFT
            rank_zero_info(f"step {self.trainer.global_step}: {self._ending}, so the run ends.")
        self.leaks = (check.risky + self.leaks)[: check.most_risky]
        self.log("train/remaining", left)

    # State in checkpoints: plain values.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the leaked answers, the last check, and what ended the run."""
        super().on_save_checkpoint(checkpoint)
        checkpoint |= {"checked": self._checked, "quiet": self._quiet, "ending": self._ending}
        checkpoint["leaks"] = [asdict(leak) for leak in self.leaks]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also restore the leaked answers, the last check, and what ended the run."""
        super().on_load_checkpoint(checkpoint)
        self._checked, self._quiet = checkpoint.get("checked", 0), checkpoint.get("quiet", 0)
        self._ending = checkpoint.get("ending", "")
        self.leaks = [PrivateExample(**leak) for leak in checkpoint.get("leaks", [])]


class CheckPolicy(pl.Callback):
    """Callback that lets `SelectiveModule` check its policy.

    Lightning calls callbacks that write checkpoints after all others, but before the module's own hook. So only from a
    callback can the outcome of a check be part of a checkpoint that is written after the same step.
    """

    follows_evaluations = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the policy after the step."""
        if isinstance(pl_module, SelectiveModule):  # the Trainer keeps the callback for its next fit
            pl_module.check()


def drawn(pool: Sequence[Any], count: int, generator: torch.Generator) -> list[Any]:
    """Draw up to ``count`` different entries of a pool."""
    return [pool[i] for i in torch.randperm(len(pool), generator=generator)[:count].tolist()]
