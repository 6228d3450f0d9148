from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipelines.data.formats import read_interactions
from pipelines.errors import DataError

ROWS: dict[int, list[tuple[int, ...]]] = {
    2: [(1, 5), (1, 3), (2, 5)],
    3: [(1, 5, 300), (1, 3, 200), (2, 5, 100)],
    4: [(1, 5, 4, 300), (1, 3, 2, 200), (2, 5, 1, 9)],
}
NAMES = {
    2: ["user_id", "item_id", "order"],
    3: ["user_id", "item_id", "timestamp"],
    4: ["user_id", "item_id", "rating", "timestamp"],
}


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("separator", [" ", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_three_and_four_columns(tmp_path: Path, width: int, separator: str, end: str) -> None:
    path = tmp_path / "ml-1m.txt"
    path.write_bytes("".join(separator.join(map(str, row)) + end for row in ROWS[width]).encode())
    frame = read_interactions(path)
    assert frame.columns == NAMES[width]
    assert frame["user_id"].dtype == frame["item_id"].dtype == pl.Int64
    expected = [(*row, place) for place, row in enumerate(ROWS[2])] if width == 2 else ROWS[width]
    assert frame.rows() == expected


def test_text_ids(tmp_path: Path) -> None:
    path = tmp_path / "Beauty.txt"
    path.write_text("A1YJE B0037 1318896000\nA60XN B0037 1328140800\n")
    assert read_interactions(path, "sasrec").rows() == [("A1YJE", "B0037", 1318896000), ("A60XN", "B0037", 1328140800)]


def test_wrong_width(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1 2 3 4 5\n")
    with pytest.raises(DataError, match=r"a.txt:1: the line has 5 fields where 2 \(user item\)"):
        read_interactions(path)
    path.write_text("1 2\n1 2 3\n1 2\n1\n")
    with pytest.raises(DataError, match=r"a.txt:2: the line has 3 fields where 2 belong \(2 of 4 rows malformed\)"):
        read_interactions(path)
