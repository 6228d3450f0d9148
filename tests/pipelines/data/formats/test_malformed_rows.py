"""Malformed text is refused with the first bad line and a count, in every text format."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.data.formats import read_interactions
from pipelines.data.formats.shown import shown, shown_names
from pipelines.errors import DataError

GOOD = ["1\t10\t5\t100", "2\t20\t4\t200", "3\t30\t3\t300"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("2\t20\t4", "the line has 3 fields where 4 belong"),
        ("2\t20\t4\t200\t1", "the line has 5 fields where 4 belong"),
        ("x\t20\t4\t200", "user_id 'x' is not a whole number"),
        ("2.5\t20\t4\t200", "user_id '2.5' is not a whole number"),
        ("2\t\t4\t200", "item_id is empty"),
        ("2\t20\tgood\t200", "rating 'good' is not a finite number"),
        ("2\t20\tnan\t200", "rating 'nan' is not a finite number"),
        ("2\t20\t4\tnow", "timestamp 'now' is not a whole number"),
        ("2\t20\t4\t1_000", "timestamp '1_000' is not a whole number"),
        ("2\t20\t4\t1e400", "timestamp '1e400' is not a finite number"),
        ("99999999999999999999\t20\t4\t200", "user_id '99999999999999999999' does not fit 64 bits"),
        ("\udcff\t20\t4\t200", "the line is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("name", ["u.data", "ratings.dat", "ratings.csv"])
def test_first_bad_line_is_named_and_all_are_counted(tmp_path: Path, line: str, problem: str, name: str) -> None:
    lines = [GOOD[0], "", GOOD[1], line, GOOD[2], line, ""]
    separator = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}[name]
    text = "\n".join(lines).replace("\t", separator)
    number = 4
    if name == "ratings.csv":
        text, number = "userId,movieId,rating,timestamp\n" + text, 5
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        read_interactions(path)
    assert str(caught.value).startswith(f"{path}:{number}: {problem} (2 of 5 rows malformed)")


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_text("\n".join([GOOD[0], "", GOOD[1], "", ""]))
    assert read_interactions(path)["user_id"].to_list() == [1, 2]


@pytest.mark.parametrize("name", ["u.data", "ratings.dat", "ratings.csv", "a.inter", "a.csv", "a.txt", "a.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(DataError, match=name):
        read_interactions(path)


@pytest.mark.parametrize(
    ("name", "header"),
    [("ratings.csv", "userId,movieId,rating,timestamp"), ("a.inter", "user_id:token\titem_id:token\ttimestamp:float")],
)
def test_header_alone(tmp_path: Path, name: str, header: str) -> None:
    path = tmp_path / name
    path.write_text(header + "\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_interactions(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_interactions(tmp_path / "gone.csv")


BINARY = bytes(range(1, 256)) * 40


@pytest.mark.parametrize("name", ["ratings.csv", "a.csv", "a.inter", "u.data", "a.txt", "ratings.dat", "a.parquet"])
@pytest.mark.parametrize("body", [BINARY, b"\0" + BINARY, BINARY.replace(b"\r", b"").replace(b"\n", b"") * 20])
@pytest.mark.parametrize("format", ["auto", "csv", "movielens", "recbole", "sasrec", "parquet"])
def test_a_binary_file_is_not_printed(tmp_path: Path, name: str, body: bytes, format: str) -> None:
    path = tmp_path / name
    path.write_bytes(body)
    with pytest.raises(DataError) as caught:
        read_interactions(path, format)
    text = str(caught.value)
    assert text.isprintable() and "\ufffd" not in text
    told = "".join(part or "" for part in (caught.value.what, caught.value.fix))
    assert len(told) < 500 and name in text


def test_a_bad_field_is_cut_and_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id,timestamp\n1,2,\x1b[31m" + "x" * 1000 + "\n")
    with pytest.raises(DataError, match=r"a.csv:2: timestamp '\\x1b\[31mx{20,40}…' is not"):
        read_interactions(path)
    path.write_text("user_id,item_id,timestamp\n1,2,3\n")
    (tmp_path / "u.data").write_text("9" * 5000 + "\t1\t1\t1\n")
    with pytest.raises(DataError, match=r"user_id '9{39}…' does not fit 64 bits"):
        read_interactions(tmp_path / "u.data")


def test_shown_names_say_how_many_there_are() -> None:
    assert shown_names(["a", "b\n", "ä"]) == "a, b\\n, ä"
    text = shown_names([f"column{number}" for number in range(1000)])
    assert text.startswith("column0, column1") and text.endswith("… (1000 in all)") and len(text) < 180
    assert shown("\ufffd" * 100) == "\\ufffd" * 13 + "\\…"
    assert len(shown("x" * 100)) == 80 and shown("x" * 80) == "x" * 80
