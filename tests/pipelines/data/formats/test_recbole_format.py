from __future__ import annotations

import zipfile
from importlib import metadata
from pathlib import Path

import polars as pl
import pytest

from pipelines.data.formats import read_interactions
from pipelines.errors import DataError

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "toy.inter"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "times", [("881250949", "978300761"), ("881250949.0", "978300761.0"), ("8.81250949e8", "9.78300761E8")]
)
def test_times_become_exact_whole_seconds(tmp_path: Path, times: tuple[str, str]) -> None:
    frame = read_interactions(write(tmp_path, f"{HEADER}196\t242\t3\t{times[0]}\n186\t302\t3.5\t{times[1]}\n"))
    assert frame.schema == {"user_id": pl.Int64, "item_id": pl.Int64, "rating": pl.Float32, "timestamp": pl.Int64}
    assert frame.rows() == [(196, 242, 3.0, 881250949), (186, 302, 3.5, 978300761)]


def test_tokens_that_are_not_plain_numbers_stay_text(tmp_path: Path) -> None:
    frame = read_interactions(write(tmp_path, f"{HEADER}007\tB00X\t3\t1\n7\tB00Y\t4\t2\n"))
    assert frame["user_id"].to_list() == ["007", "7"]
    assert frame["item_id"].to_list() == ["B00X", "B00Y"]


def test_columns_in_any_order_and_more_of_them(tmp_path: Path) -> None:
    text = "timestamp:float\ttags:token_seq\titem_id:token\tuser_id:token\n5\ta b\t7\t1\n4\tc\t8\t2\n"
    frame = read_interactions(write(tmp_path, text))
    assert frame.select("user_id", "item_id", "timestamp").rows() == [(1, 7, 5), (2, 8, 4)]


def test_own_names_and_no_times(tmp_path: Path) -> None:
    path = write(tmp_path, "uid:token\tiid:token\n5\t7\n4\t8\n")
    with pytest.raises(DataError, match="toy.inter:1: columns missing: user_id, item_id, timestamp; found: uid, iid"):
        read_interactions(path)
    frame = read_interactions(path, user="uid", item="iid", timestamp=None)
    assert frame.rows(named=True) == [
        {"user_id": 5, "item_id": 7, "order": 0},
        {"user_id": 4, "item_id": 8, "order": 1},
    ]


def test_a_rating_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="columns missing: stars; .*--set dataset.options.rating=COLUMN"):
        read_interactions(write(tmp_path, f"{HEADER}1\t2\t3\t4\n"), rating="stars")


def test_a_field_that_stands_twice_is_refused(tmp_path: Path) -> None:
    header = HEADER.replace("rating:float", "item_id:token")
    with pytest.raises(DataError, match="toy.inter:1: column name 'item_id' stands 2 times"):
        read_interactions(write(tmp_path, f"{header}1\t2\t3\t4\n"))


def test_untyped_header(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="toy.inter:1: header field 'user_id' is not name:type"):
        read_interactions(write(tmp_path, "user_id\titem_id\n1\t2\n"))


def test_malformed_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"toy.inter:3: timestamp 'soon' .*\(1 of 2 rows"):
        read_interactions(write(tmp_path, f"{HEADER}1\t2\t3\t4\n1\t2\t3\tsoon\n"))


def test_inside_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as archive:
        archive.writestr("toy/toy.item", "item_id:token\n1\n")
        archive.writestr("toy/toy.inter", f"{HEADER}1\t2\t3\t4\n")
    assert read_interactions(tmp_path / "toy.zip").rows() == [(1, 2, 3.0, 4)]


def test_ml_100k_of_the_recbole_package() -> None:
    package = metadata.distribution("recbole")
    frame = read_interactions(Path(str(package.locate_file("recbole/dataset_example/ml-100k/ml-100k.inter"))))
    assert frame.height == 100_000
    assert frame.row(0) == (196, 242, 3.0, 881250949)
    assert (frame["user_id"].n_unique(), frame["item_id"].n_unique()) == (943, 1682)
    assert int(frame["timestamp"].sum()) == sum(frame["timestamp"].to_list())
    assert (frame["timestamp"].min(), frame["timestamp"].max()) == (874724710, 893286638)
