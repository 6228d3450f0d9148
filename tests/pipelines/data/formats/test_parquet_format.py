from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.data.formats import read_interactions
from pipelines.errors import DataError


def write(tmp_path: Path, columns: dict[str, Any]) -> Path:
    path = tmp_path / "log.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return path


def test_narrow_integers_and_an_order_column(tmp_path: Path) -> None:
    columns = {
        "user_id": pl.Series([1, 1], dtype=pl.Int32),
        "item_id": ["x", "y"],
        "pos": pl.Series([1, 0], dtype=pl.Int16),
    }
    path = write(tmp_path, columns | {"seconds_since_first": [0, 86400], "dwell": [1.5, 2.5]})
    frame = read_interactions(path, timestamp="seconds_since_first", order="pos", features=["dwell"])
    assert frame.schema == {
        "user_id": pl.Int64, "item_id": pl.String, "timestamp": pl.Int64, "order": pl.Int64, "dwell": pl.Float64,
    }  # fmt: skip
    assert frame.rows() == [(1, "x", 0, 1, 1.5), (1, "y", 86400, 0, 2.5)]


def test_dates_and_whole_floats_become_seconds(tmp_path: Path) -> None:
    dates = [datetime(2000, 12, 31, 22, 12, 40), datetime(1970, 1, 1)]
    frame = read_interactions(write(tmp_path, {"user_id": [1, 2], "item_id": [1, 2], "timestamp": dates}))
    assert frame["timestamp"].to_list() == [978300760, 0]
    frame = read_interactions(write(tmp_path, {"user_id": [1, 2], "item_id": [1, 2], "timestamp": [978300760.0, 0.0]}))
    assert frame["timestamp"].to_list() == [978300760, 0]
    with pytest.raises(DataError, match="no times"):
        read_interactions(write(tmp_path, {"user_id": [1], "item_id": [1], "timestamp": [float("nan")]}))


def test_file_order_without_times(tmp_path: Path) -> None:
    frame = read_interactions(write(tmp_path, {"user_id": [4, 3], "item_id": [1, 2]}), timestamp=None)
    assert frame["order"].to_list() == [0, 1]


def test_missing_columns(tmp_path: Path) -> None:
    path = write(tmp_path, {"uid": [1], "item_id": [1]})
    with pytest.raises(DataError, match="columns missing: user_id, timestamp; found: uid, item_id"):
        read_interactions(path)
    with pytest.raises(DataError, match="columns missing: dwell"):
        read_interactions(path, user="uid", timestamp=None, features=["dwell"])


def test_not_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("user_id,item_id\n")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_interactions(path)
