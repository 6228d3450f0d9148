from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

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
        DataError,
        match="log.csv:1: columns missing: user_id, timestamp; found: uid, item_id. Name the file's columns with "
        "--set dataset.options.user=COLUMN --set dataset.options.timestamp=COLUMN .*timestamp null",
    ):
        read_interactions(write(tmp_path, "uid,item_id\n1,2\n"))
    with pytest.raises(DataError, match="--set dataset.options.separator"):
        read_interactions(write(tmp_path, "user_id;item_id;timestamp\n1;2;3\n"))


@pytest.mark.parametrize("header", ["user_id,item_id,timestamp, user_id", "user_id,item_id,timestamp,timestamp"])
def test_a_column_name_that_stands_twice_is_refused(tmp_path: Path, header: str) -> None:
    name = header.rpartition(",")[2].strip()
    with pytest.raises(DataError, match=f"log.csv:1: column name '{name}' stands 2 times"):
        read_interactions(write(tmp_path, f"{header}\n1,2,3,4\n"))


def test_columns_that_are_not_read_may_share_a_name(tmp_path: Path) -> None:
    assert read_interactions(write(tmp_path, "user_id,item_id,timestamp,,\n1,2,3,,\n")).rows() == [(1, 2, 3)]


def test_a_member_is_read_by_the_format_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "logs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("logs/may.csv", "user_id,item_id,timestamp\n1,2,3\n")
    with pytest.raises(DataError, match="--set dataset.options.member=NAME"):
        read_interactions(path)
    assert read_interactions(path, member="logs/may.csv").rows() == [(1, 2, 3)]


@pytest.mark.parametrize(("option", "value"), [("user", 3), ("user", None), ("separator", ["a"]), ("timestamp", True)])
def test_option_values_of_another_kind_are_refused(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"dataset.options.{option}: option '{option}' cannot be") as caught:
        read_interactions(write(tmp_path, "user_id,item_id,timestamp\n1,2,3\n"), **{option: value})
    assert "\n" not in str(caught.value)


def test_malformed_row(tmp_path: Path) -> None:
    path = write(tmp_path, 'user_id,item_id,timestamp\n"1,0",2,3\n1,2,\n1,2\n')
    with pytest.raises(DataError, match=r"log.csv:3: timestamp is empty \(2 of 3 rows malformed\)"):
        read_interactions(path)


def test_long_separator(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not one character"):
        read_interactions(write(tmp_path, "a,b\n"), "csv", separator="||")
