"""MkDocs hooks: formulas become MathML, which browsers draw without a script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace each formula of a page by its MathML."""
    return _FORMULA.sub(_formula, content)


def _formula(match: re.Match[str]) -> str:
    inline = match.group(1) == "span"
    mathml = convert(html.unescape(match.group(2)).strip(), display="inline" if inline else "block")
    return mathml if inline else f'<div class="formula">{mathml}</div>'
