from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.data.formats import read_interactions
from pipelines.errors import ConfigError, DataError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_named_columns_quotes_and_separator(tmp_path: Path) -> None:
    path = write(tmp_path, '"who";"what";"extra";"when";"stars"\n"a;b";7;x;5;4.5\nc;8;"y";6;3\n')
    frame = read_interactions(path, "csv", separator=";", user="who", item="what", timestamp="when", rating="stars")
    assert frame.rows(named=True) == [
        {"user_id": "a;b", "item_id": 7, "timestamp": 5, "rating": 4.5},
        {"user_id": "c", "item_id": 8, "timestamp": 6, "rating": 3.0},
    ]


def test_default_names_and_byte_order_mark(tmp_path: Path) -> None:
    frame = read_interactions(write(tmp_path, "\ufefftimestamp,item_id,user_id\n5,1,2\n4,3,2\n"))
    assert frame.select("user_id", "item_id", "timestamp").rows() == [(2, 1, 5), (2, 3, 4)]


def test_no_times(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id,item_id,place\n1,2,9\n1,3,8\n")
    assert read_interactions(path, timestamp=None)["order"].to_list() == [0, 1]
    assert read_interactions(path, timestamp=None, order="place")["order"].to_list() == [9, 8]


def test_missing_columns_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="log.csv:1: columns missing: user_id, timestamp; found: uid, item_id. Name the"
    ):
        read_interactions(write(tmp_path, "uid,item_id\n1,2\n"))


def test_malformed_row(tmp_path: Path) -> None:
    path = write(tmp_path, 'user_id,item_id,timestamp\n"1,0",2,3\n1,2,\n1,2\n')
    with pytest.raises(DataError, match=r"log.csv:3: timestamp is empty \(2 of 3 rows malformed\)"):
        read_interactions(path)


def test_long_separator(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not one character"):
        read_interactions(write(tmp_path, "a,b\n"), "csv", separator="||")
