from __future__ import annotations

import zipfile
from pathlib import Path

import polars as pl
import pytest

from pipelines.data.formats import read_interactions
from pipelines.errors import ConfigError, DataError

ROWS = [(1, 1193, 5.0, 978300760), (1, 661, 3.0, 978302109), (2, 661, 4.0, 978300760)]
HALF = [(1, 122, 5.0, 838985046), (1, 185, 0.5, 838983525), (2, 122, 3.5, 838983392)]


def number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def text_100k(rows: list[tuple[int, int, float, int]]) -> str:
    return "".join(f"{u}\t{i}\t{number(r)}\t{t}\n" for u, i, r, t in rows)


def text_dat(rows: list[tuple[int, int, float, int]]) -> str:
    return "".join(f"{u}::{i}::{number(r)}::{t}\n" for u, i, r, t in rows)


def text_csv(rows: list[tuple[int, int, float, int]]) -> str:
    return "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in rows)


LAYOUTS = {
    "100k": ("u.data", "ml-100k/u.data", text_100k(ROWS), ROWS, ["ml-100k/u.item", "ml-100k/u1.base"]),
    "1m": ("ratings.dat", "ml-1m/ratings.dat", text_dat(ROWS), ROWS, ["ml-1m/movies.dat", "ml-1m/users.dat"]),
    "10m": ("ratings.dat", "ml-10M100K/ratings.dat", text_dat(HALF), HALF, ["ml-10M100K/tags.dat"]),
    "20m": (
        "ratings.csv",
        "ml-20m/ratings.csv",
        text_csv(HALF),
        HALF,
        ["ml-20m/movies.csv", "ml-20m/genome-scores.csv"],
    ),
    "25m": ("ratings.csv", "ml-25m/ratings.csv", text_csv(HALF).replace("\n", "\r\n"), HALF, ["ml-25m/tags.csv"]),
    "32m": ("ratings.csv", "ml-32m/ratings.csv", text_csv(HALF), HALF, ["ml-32m/links.csv"]),
}


def check(frame: pl.DataFrame, rows: list[tuple[int, int, float, int]]) -> None:
    assert frame.schema == {
        "user_id": pl.Int64, "item_id": pl.Int64, "rating": pl.Float32, "timestamp": pl.Int64,
    }  # fmt: skip
    assert frame.rows() == rows


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("where", ["plain", "folder", "zip"])
@pytest.mark.parametrize("format", ["auto", "movielens"])
def test_every_layout_everywhere(tmp_path: Path, name: str, where: str, format: str) -> None:
    file, member, text, rows, others = LAYOUTS[name]
    if where == "plain":
        path = tmp_path / file
        path.write_bytes(text.encode())
    elif where == "folder":
        path = tmp_path / "data"
        (path / member).parent.mkdir(parents=True)
        (path / member).write_bytes(text.encode())
    else:
        path = tmp_path / "official.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{member.split('/')[0]}/", "")
            archive.writestr(member, text)
            for other in others:
                archive.writestr(other, b"\xe9 not\tto::be,read")
    check(read_interactions(path, format), rows)


def test_only_the_member_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-1m/movies.dat", "here be damage")
        archive.writestr("ml-1m/ratings.dat", text_dat(ROWS))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"here be damage", b"HERE BE DAMAGE"))  # its CRC is wrong now
    check(read_interactions(path), ROWS)
    path.write_bytes(data.replace(b"1::1193::5", b"1::1193::4"))
    with pytest.raises(DataError, match="is damaged.*Fetch it again"):
        read_interactions(path)


def test_member_picks_among_several(tmp_path: Path) -> None:
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/ratings.dat", text_dat(ROWS))
        archive.writestr("b/ratings.dat", text_dat(HALF))
    with pytest.raises(DataError, match="several.*--set dataset.options.member=NAME"):
        read_interactions(path, "movielens")
    check(read_interactions(path, "movielens", member="b/ratings.dat"), HALF)
    with pytest.raises(DataError, match="holds no c/ratings.dat; found: a/ratings.dat, b/ratings.dat"):
        read_interactions(path, "movielens", member="c/ratings.dat")


def test_not_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "ml-1m.zip"
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="not a usable zip archive"):
        read_interactions(path)


def test_other_header(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("userId,itemId,rating,timestamp\n1,2,3,4\n")
    with pytest.raises(DataError, match="ratings.csv:1: columns missing: movieId; found: userId,itemId.*`format: csv`"):
        read_interactions(path, "movielens")


def test_unknown_option_and_format(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_text(text_100k(ROWS))
    with pytest.raises(ConfigError, match="dataset.options.membr: .*no option 'membr'.*did you mean 'member'"):
        read_interactions(path, membr="x")
    with pytest.raises(ConfigError, match="unknown data format 'movilens'.*did you mean 'movielens'"):
        read_interactions(path, "movilens")
