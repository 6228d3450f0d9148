"""KuaiRand from the published layout: plain, packed, malformed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.data.formats import kuairand, read_interactions, read_users
from pipelines.errors import ConfigError, DataError
from tests.pipelines.data.kuairand_files import LOG, event, logs_of, pack, small_edition, user, write_edition


@pytest.mark.parametrize("edition", kuairand.EDITIONS)
@pytest.mark.parametrize("form", ["folder", "tar.gz", "zip"])
def test_every_edition_reads_alike_from_a_folder_and_an_archive(tmp_path: Path, edition: str, form: str) -> None:
    folder = small_edition(tmp_path, edition)
    path = folder if form == "folder" else pack(folder, tmp_path / f"{folder.name}.{form}")
    frame = read_interactions(path, "kuairand")
    logs = len(logs_of(edition))
    assert frame.height == 3 * logs
    assert frame["user_id"].to_list() == [3, 7, 9] * logs
    assert frame["item_id"].to_list() == [10 + place for place in range(logs) for _ in range(3)]  # in log order
    assert frame["timestamp"][0] == 1_649_347_200_003
    assert set(frame["actions"].to_list()) == {1 + 64}
    assert [str(kind) for kind in frame.dtypes] == ["Int32", "Int32", "Int64", "UInt8"]
    users = read_users(path, ["user_active_degree", "follow_user_num_range"], "kuairand")
    assert users.rows() == [(3, "full_active", "(0,10]"), (7, "UNKNOWN", "500+"), (9, None, "0")]


def test_each_signal_has_its_bit(tmp_path: Path) -> None:
    masks = ["".join("1" if place == bit else "0" for place in range(8)) for bit in range(8)]
    first, second = logs_of("pure")
    files = {first: [event(1, bit, bit, mask) for bit, mask in enumerate(masks)], second: []}
    frame = read_interactions(write_edition(tmp_path, "pure", files), "kuairand", edition="pure")
    assert frame["actions"].to_list() == [1, 2, 4, 8, 16, 32, 64, 128]
    assert list(kuairand.SIGNALS) == [
        "click", "like", "follow", "comment", "forward", "hate", "long_view", "profile_enter",
    ]  # fmt: skip


def test_blocks_cut_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = logs_of("1k")
    rows = [event(u, u * 3, 1000 + u, "11000000") for u in range(200)]
    folder = write_edition(tmp_path, "1k", {first: rows[:150], second: rows[150:]})
    whole = read_interactions(folder, "kuairand")
    monkeypatch.setattr(kuairand, "_BLOCK", 97)
    assert read_interactions(folder, "kuairand").equals(whole)
    assert whole["user_id"].to_list() == list(range(200))


def test_random_logs_and_features_are_read_when_asked_for(tmp_path: Path) -> None:
    folder = small_edition(tmp_path, "1k")
    assert read_interactions(folder, "kuairand", logs="random")["item_id"].to_list() == [99]
    every = read_interactions(folder, "kuairand", logs="all", features=["play_time_ms", "is_rand"])
    assert every["item_id"].to_list()[-1] == 99
    assert every["is_rand"].to_list() == [0] * 6 + [1]
    assert every["play_time_ms"].to_list() == [1000] * 7


def test_wide_ids_keep_their_value(tmp_path: Path) -> None:
    first, second = logs_of("1k")
    folder = write_edition(tmp_path, "1k", {first: [event(1, 5, 1)], second: [event(1, 2**40, 2)]})
    assert read_interactions(folder, "kuairand")["item_id"].to_list() == [5, 2**40]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (event(1, 2, 3, "02000000"), r"is_like '2' is neither 0 nor 1"),
        (event(1, 2, 3)[:-2], r"the line has 18 fields where 19 belong"),
        (event(1, 2, 3).replace("1,2,2022", "x,2,2022"), r"user_id 'x' is not a whole number"),
        (event(1, 2, 3).replace("1,2,2022", "1,,2022"), r"item_id is empty"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, problem: str
) -> None:
    monkeypatch.setattr(kuairand, "_BLOCK", 200)  # the bad line is not in the first block
    first, second = logs_of("27k")[:2]
    rows = [event(1, video, video) for video in range(5)]
    files = dict.fromkeys(logs_of("27k"), rows) | {second: [*rows, line, *rows]}
    folder = write_edition(tmp_path, "27k", files)
    with pytest.raises(DataError, match=rf"{second}:7: {problem} \(1 of 11 rows malformed\)"):
        read_interactions(folder, "kuairand")
    assert first != second


def test_missing_files_columns_and_editions_are_named(tmp_path: Path) -> None:
    folder = small_edition(tmp_path, "1k")
    with pytest.raises(DataError, match=r"log_standard_4_08_to_4_21_pure.csv"):
        read_interactions(folder, "kuairand", edition="pure")
    with pytest.raises(ConfigError, match=r"unknown edition '2k'"):
        read_interactions(folder, "kuairand", edition="2k")
    with pytest.raises(ConfigError, match=r"unknown logs 'standart'.*standard"):
        read_interactions(folder, "kuairand", logs="standart")
    with pytest.raises(DataError, match=r"columns missing: plays; found: user_id"):
        read_interactions(folder, "kuairand", features=["plays"])
    with pytest.raises(DataError, match=r"user_features_1k.csv:1: columns missing: user_degree"):
        read_users(folder, ["user_degree"], "kuairand")
    with pytest.raises(DataError, match=r"which edition"):
        read_interactions(folder.rename(tmp_path / "data"), "kuairand")
    path = pack(small_edition(tmp_path, "1k"), tmp_path / "KuaiRand-1K.tar.gz")
    with pytest.raises(DataError, match=r"holds no log_standard_4_08_to_4_21_pure.csv"):
        read_interactions(path, "kuairand", edition="pure")


def test_a_cut_off_archive_is_damaged(tmp_path: Path) -> None:
    path = pack(small_edition(tmp_path, "1k"), tmp_path / "KuaiRand-1K.tar.gz")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="is damaged"):
        read_interactions(path, "kuairand")


def test_malformed_users_are_named_by_file_and_line(tmp_path: Path) -> None:
    files = {name: [event(1, 2, 3)] for name in logs_of("pure")}
    folder = write_edition(tmp_path, "pure", files | {"user_features_pure.csv": [user(1), user(2)[:-4]]})
    with pytest.raises(DataError, match=r"user_features_pure.csv:3: the line has 29 fields where 31 belong"):
        read_users(folder, ["user_active_degree"], "kuairand")
    assert LOG.count(",") == 18


def test_formats_without_users_say_so(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("user_id,item_id,timestamp\n1,2,3\n")
    with pytest.raises(ConfigError, match=r"format csv tells nothing of its users \(age\).*kuairand, movielens"):
        read_users(path, ["age"])
