"""One self-contained HTML page of a verdict: its numbers, every private value, answers before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dipo_lightning.report.page import fill
from dipo_lightning.safety.text import visible


def verdict_page(
    verdict: Mapping[str, Any], facts: Mapping[str, str], answers: Sequence[Mapping[str, str]], keep: float
) -> str:
    """Return the page as HTML.

    Args:
        verdict: The verdict as plain values.
        facts: What the run was made with, for the head of the page.
        answers: For each forget row ``question``, ``answer``, and what was said ``before`` and ``after``.
        keep: Share that must be kept.
    """
    return fill(
        "verdict.html.jinja",
        verdict={name: value for name, value in verdict.items() if name not in ("values", "kept")}
        | {"reasons": [visible(reason) for reason in verdict["reasons"]]},
        facts={label: visible(text) for label, text in facts.items()},
        values=[_value(value) for value in verdict["values"]],
        kept=[_kept(one, keep) for one in verdict["kept"]],
        answers=[{name: visible(text) for name, text in row.items()} for row in answers],
    )


def _value(value: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table of values."""
    return {
        "value": visible(value["value"]),
        "index": value["index"],
        "before": f"{value['before']:.2g}",
        "after": f"{value['after']:.2g}",
        "floor": "–" if value["floor"] is None else f"{value['floor']:.2g}",
        "said": "yes" if value["greedy"] else "no",
        "reworded": "yes" if value["reworded"] else "no",
        "sampled": f"{value['sampled']} of {value['samples']}",
        "rank": value["rank"] or "–",
        "tone": "bad" if value["remains"] else "",
    }


def _kept(one: Mapping[str, Any], keep: float) -> dict[str, Any]:
    """A line of the table of what was kept."""
    known = one["low"] is not None and one["high"] is not None
    return {
        "name": one["label"],
        "rows": one["rows"],
        "before": f"{one['before']:.3f}",
        "after": f"{one['after']:.3f}",
        "share": f"{one['share']:.1%}",
        "interval": f"{one['low']:.1%} to {one['high']:.1%}" if known else "–",
        "tone": "" if one["share"] >= keep else "bad",
    }
