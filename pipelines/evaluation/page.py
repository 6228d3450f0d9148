"""Pieces of report.html: plain values in, escaped HTML out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipelines.evaluation.charts import number

_DIGEST = re.compile(r"\b([0-9a-f]{32,64})\b")


def text_of(value: Any) -> str:
    """A value in words, nested ones in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text_of(inner)}" for key, inner in value.items() if inner not in (None, "", [], {}))
    if isinstance(value, (list, tuple)):
        return ", ".join(text_of(inner) for inner in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def figure(value: Any) -> str:
    """A number as people write it; ``-`` for anything else."""
    return number(float(value)) if isinstance(value, (int, float)) else "-"


def interval_text(interval: Sequence[float] | None) -> str:
    """``low - high``, or ``-`` when there is none."""
    return f"{interval[0]:.4f}\u2013{interval[1]:.4f}" if interval else "-"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s``, ``48 min``, ``2 h 7 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 10:
        return f"{minutes} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def definitions(section: Mapping[str, Any]) -> str:
    """Names and values below each other; empty values are left out, digests set small."""
    entries = []
    for key, value in section.items():
        if value not in (None, "", [], {}):
            text = _DIGEST.sub(r"<code>\1</code>", escape(text_of(value)))
            entries.append(f"<dt>{escape(str(key).replace('_', ' '))}</dt><dd>{text}</dd>")
    return f"<dl>{''.join(entries)}</dl>" if entries else ""


def cell(value: Any, kind: str = "") -> str:
    """A table cell; ``kind`` is its CSS class."""
    return f'<td class="{kind}">{escape(text_of(value))}</td>' if kind else f"<td>{escape(text_of(value))}</td>"


def table(
    headings: Iterable[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    main: Sequence[bool] | None = None,
) -> str:
    """A table that scrolls when it is too wide.

    Args:
        headings: one a column, plain text.
        rows: of cells, each HTML.
        right: columns of numbers.
        main: which rows stand out.
    """
    head = "".join(f'<th class="{"n" if i in right else ""}">{escape(text)}</th>' for i, text in enumerate(headings))
    bold = main or [False] * len(rows)
    body = "".join(f'<tr class="{"main" if b else ""}">{"".join(row)}</tr>' for row, b in zip(rows, bold, strict=True))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def card(title: str, content: str, otherwise: str = "nothing logged yet") -> str:
    """A card; ``title`` and ``content`` are HTML."""
    inner = content or f'<p class="lead">{escape(otherwise)}</p>'
    return f'<section class="card"><h2>{title}</h2><div class="plot">{inner}</div></section>'


def details(title: str, text: str) -> str:
    """Plain ``text`` that opens on a click."""
    if not text:
        return ""
    return f'<section class="card"><details><summary>{title}</summary><pre>{escape(text)}</pre></details></section>'
