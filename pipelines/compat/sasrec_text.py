"""``convert_ml1m``: MovieLens as a text file that the SASRec family's scripts read.

    python -m pipelines.compat.sasrec convert_ml1m [--columns=2|3|4] [--input=FILE] [--output=FILE]

The orders of columns, and who reads them:

    2   user item                     a space   SASRec; the order of the lines is the order of the events
    3   user item timestamp           a space   what the converting script writes; the default
    4   user item rating timestamp    a tab     TiSASRec

Lines stand by user and then by time; events of the same second keep the file's order. Ids stay as they are. A run on
such a file tells the layout from the first line; no other order is taken for one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipelines.compat.sasrec_flags import Parser
from pipelines.data.datasets import data_folder, load_dataset_spec
from pipelines.data.fetch import fetch
from pipelines.data.formats import detect_format, read_interactions
from pipelines.errors import ConfigError, RunError

OUTPUT = Path("data") / "ml-1m.txt"
LAYOUTS = {
    2: (" ", ("user_id", "item_id")),
    3: (" ", ("user_id", "item_id", "timestamp")),
    4: ("\t", ("user_id", "item_id", "rating", "timestamp")),
}
# Where the script's users have it after wget and unzip.
_USUAL = (Path("data/ml-1m/ratings.dat"), Path("data/ml-1m.zip"))


def convert_ml1m(arguments: Sequence[str]) -> int:
    """The command; 0 when the file is written.

    Raises:
        ConfigError: a flag that is none, or an input that is not MovieLens.
        DataError: the input is missing or malformed, or no source has it.
        RunError: the output cannot be written.
    """
    parser = Parser(prog="python -m pipelines.compat.sasrec convert_ml1m", allow_abbrev=False)
    parser.add_argument("--columns", type=int, choices=LAYOUTS, default=3, help="default 3, with timestamps")
    usual = " or ".join(map(str, _USUAL))
    parser.add_argument("--input", type=Path, help=f"ratings.dat, or a zip that holds it; else {usual}, or fetched")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"default {OUTPUT}")
    asked = parser.parse_args(arguments)
    source = asked.input or next((path for path in _USUAL if path.is_file()), None)
    source = source or fetch(load_dataset_spec("ml-1m"), data_folder()).path
    if detect_format(source) != "movielens":
        raise ConfigError("is no MovieLens file", where=str(source), fix="give ratings.dat or the official zip")
    table = read_interactions(source, "movielens").sort("user_id", "timestamp", maintain_order=True)
    write_text_format(table, asked.output, asked.columns)
    separator, names = LAYOUTS[asked.columns]
    order, by = " ".join(name.removesuffix("_id") for name in names), "a tab" if separator == "\t" else "a space"
    users, items = table["user_id"].n_unique(), table["item_id"].n_unique()
    print(f"{asked.output}: {len(table):,} events of {users:,} users and {items:,} items, '{order}', {by} between")
    return 0


def write_text_format(table: pl.DataFrame, path: Path, columns: int) -> None:
    """Write interactions in one of :data:`LAYOUTS`, in the order of their rows, whole or not at all.

    Raises:
        RunError: the folder cannot be written.
    """
    separator, names = LAYOUTS[columns]
    if "rating" in names and (table["rating"] % 1 == 0).all():  # whole stars as they stand in ratings.dat
        table = table.with_columns(pl.col("rating").cast(pl.Int64))
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.select(names).write_csv(temporary, include_header=False, separator=separator)
        temporary.replace(path)
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise RunError(what, where=str(path), fix="give another --output") from error
