"""Whatever a log, a model's text or a row's value is, there is a number, or one of the package's own errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from dipo_lightning.cli.score import score
from dipo_lightning.errors import DiPOError
from dipo_lightning.evaluation.aggregates import flat_numbers
from dipo_lightning.evaluation.logs import read_log
from dipo_lightning.evaluation.tensorboard import escape
from dipo_lightning.metrics import RowMean
from dipo_lightning.metrics.functional import forget_quality, rouge_l
from dipo_lightning.safety.display import printable, visible
from tests.helpers.aggregate import tofu
from tests.properties.drawing import KEY, SCALAR, TEXT, VALUE, cases

LOG_KEYS = ("index", "nll", "correct_nll", "wrong_nll", "rouge_l_recall", "generation", "min_k", "exact_memorization")
NUMBER = st.one_of(st.floats(0, 60), st.floats(), st.none(), st.integers(-3, 3))
GOOD_ROW = st.fixed_dictionaries(
    {
        "index": st.integers(0, 5), "nll": NUMBER, "correct_nll": NUMBER, "rouge_l_recall": NUMBER,
        "wrong_nll": st.one_of(st.none(), st.lists(NUMBER, max_size=3)),
    },
    optional={"min_k": NUMBER, "generation": TEXT, "exact_memorization": NUMBER},
)  # fmt: skip
ANY_ROW = st.dictionaries(st.one_of(st.sampled_from(LOG_KEYS), KEY), VALUE, max_size=5)
SETS = st.dictionaries(
    st.sampled_from(["forget", "retain", "real_authors", "world_facts", "holdout"]),
    st.lists(st.one_of(GOOD_ROW, GOOD_ROW, ANY_ROW), max_size=3),
    max_size=5,
)
SETTINGS = st.one_of(
    st.just({}), VALUE, st.fixed_dictionaries({"truth_ratio": st.one_of(SCALAR, st.just("geometric"))})
)
LOG = st.fixed_dictionaries(
    {"format": st.sampled_from(["dipo-lightning/tofu/1", "dipo-lightning/tofu/1", "dipo-lightning/muse/1", "x"])},
    optional={"settings": SETTINGS, "sets": st.one_of(SETS, SETS, VALUE), "aggregates": VALUE, "skipped": VALUE},
)


@cases(400)
@given(document=st.one_of(VALUE, LOG, LOG))
def test_logs_of_any_content_are_scored_or_refused(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    try:
        found = score(path, path)
    except DiPOError as error:
        assert str(error)  # noqa: PT017
    else:
        assert found
        assert all(number is None or math.isfinite(number) for number in flat_numbers(found).values())


@cases(200)
@given(sets=st.dictionaries(st.sampled_from(["forget", "retain", "real_authors", "world_facts"]), st.lists(GOOD_ROW,
       max_size=4, unique_by=lambda row: row["index"]), max_size=4), draw=st.data(),
       variant=st.one_of(st.sampled_from(["geometric", "arithmetic", "open_unlearning"]), TEXT))  # fmt: skip
def test_aggregates_of_any_numbers_do_not_depend_on_the_order(sets: Any, draw: Any, variant: str) -> None:
    shuffled = {name: draw.draw(st.permutations(rows)) for name, rows in sets.items()}
    try:
        found = tofu(sets, sets, variant)
    except DiPOError as error:
        assert str(error)  # noqa: PT017
    else:
        assert repr(tofu(shuffled, shuffled, variant)) == repr(found)


@cases(100)
@given(content=st.binary(max_size=60))
def test_logs_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(content)
    try:
        read_log(path)
    except DiPOError as error:
        assert str(error)  # noqa: PT017


@cases(200)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), stemmer=st.booleans())
def test_rouge_of_any_text(pairs: list[tuple[str, str]], stemmer: bool) -> None:
    predictions, targets = zip(*pairs, strict=True)
    recall, f1 = rouge_l(predictions, targets, stemmer)
    assert ((recall >= 0) & (recall <= 1) & (f1 >= 0) & (f1 <= 1)).all()
    swapped = rouge_l(predictions[::-1], targets[::-1], stemmer)
    assert torch.equal(swapped.recall.flip(0), recall)


@cases(150)
@given(one=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12), seed=st.integers(0, 9))
def test_forget_quality_does_not_depend_on_the_order(one: list[float], seed: int) -> None:
    values = torch.tensor(one, dtype=torch.float64)
    other = values.flip(0) * 0.5
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    result = forget_quality(values, other)
    assert result == forget_quality(values[order], other)
    assert 0 <= result.p <= 1
    assert math.isfinite(result.log10_p)


class Value(RowMean):
    field = "value"


@cases(200)
@given(values=st.dictionaries(st.integers(0, 2**40), st.floats(), max_size=8))
def test_means_of_any_values(values: dict[int, float]) -> None:
    metric = Value("rows")
    metric.update({"rows": [{"index": index, "value": value} for index, value in values.items()]})
    missing = sorted(index for index, value in values.items() if math.isnan(value))
    found = metric.compute().item()
    assert math.isnan(found) or len(missing) < len(values)
    assert metric.unscored == ({"rows": missing} if missing else {})


@cases(200)
@given(text=TEXT)
def test_any_text_can_be_shown(text: str) -> None:
    for shown in (printable(text), visible(text)):
        assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202e\u2066" for c in shown)
        shown.encode()
    assert not set("<>|`\n\x1b\u202e") & set(escape(text))
