"""Made-up data: a JSON file that describes what to draw (see pipelines/data/synthetic.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipelines.data.synthetic import read_description


def read(path: Path) -> pl.DataFrame:
    """``user_id``, ``item_id``, ``timestamp`` and, where described, ``actions``.

    Raises:
        DataError: the file is no description.
    """
    return pl.DataFrame(read_description(path).events())


def read_users(path: Path, names: Sequence[str]) -> pl.DataFrame:
    """``user_id`` and the features ``names`` of the users.

    Raises:
        ConfigError: a feature that is not described.
        DataError: the file is no description.
    """
    return pl.DataFrame(read_description(path).user_table(list(names)))
