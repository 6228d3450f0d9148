"""What a message may quote of a data file: short, on one line, and nothing that a terminal would obey."""

from __future__ import annotations

from collections.abc import Iterable

LIMIT = 80
"""Characters of a file's content in one message."""
_NAME_LIMIT = 40
_NAMES_LIMIT = 160


def shown(text: str, limit: int = LIMIT) -> str:
    """``text`` with unprintable characters (and U+FFFD, which stands for broken ones) escaped, cut to ``limit``."""
    escaped = "".join(
        letter if letter.isprintable() and letter != "\ufffd" else letter.encode("unicode_escape").decode()
        for letter in text[: limit + 1]
    )
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def shown_names(names: Iterable[str]) -> str:
    """Names separated by commas, each and all of them cut, with their number where not all fit."""
    every = list(names)
    text, fit = "", 0
    for name in every:
        longer = f"{text}, {shown(name, _NAME_LIMIT)}" if fit else shown(name, _NAME_LIMIT)
        if fit and len(longer) > _NAMES_LIMIT:
            return f"{text}, … ({len(every)} in all)"
        text, fit = longer, fit + 1
    return text
