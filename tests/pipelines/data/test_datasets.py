from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from pipelines.data.dataset_store import dataset_store
from pipelines.data.datasets import CONFIG_FOLDER, DatasetSpec, dataset_files, load_dataset_spec
from pipelines.data.prepare import PrepareOptions
from pipelines.data.splits import make_split
from pipelines.errors import ConfigError, DataError
from tests.pipelines.data.kuairand_files import pack, small_edition

pytestmark = pytest.mark.usefixtures("no_sources")

DAT = "1::10::5::100\n1::20::4.5::200\n2::10::3::300\n2::30::1::400\n2::20::1::500\n"
CSV = "userId,movieId,rating,timestamp\n" + DAT.replace("::", ",")
MEMBERS = {
    "ml-100k": ("ml-100k/u.data", DAT.replace("::", "\t")),
    "ml-1m": ("ml-1m/ratings.dat", DAT),
    "ml-10m": ("ml-10M100K/ratings.dat", DAT),
    "ml-20m": ("ml-20m/ratings.csv", CSV),
    "ml-20m-context": ("ml-20m/ratings.csv", CSV),
    "ml-25m": ("ml-25m/ratings.csv", CSV),
    "ml-32m": ("ml-32m/ratings.csv", CSV),
    "ml-32m-past": ("ml-32m/ratings.csv", CSV),
}


def test_every_config_loads_and_names_are_unique() -> None:
    files = dataset_files()
    assert {path.stem for path in files.values()} == {path.stem for path in CONFIG_FOLDER.glob("*.yaml")}
    for name, path in files.items():
        spec = load_dataset_spec(name)
        assert spec.name == path.stem
        assert spec.file and spec.description


@pytest.mark.parametrize("name", MEMBERS)
def test_every_movielens_config_reads_its_official_layout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_dataset_spec(name, cache=tmp_path / "cache")
    assert spec.file is not None and spec.url is not None and spec.md5 is not None
    member, text = MEMBERS[name]
    archive = tmp_path / "mirror" / spec.file
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(member, text)
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path / "mirror"))
    store = dataset_store(spec, tmp_path / "cache")
    events = 4 if name == "ml-32m-past" else 5  # the oldest 80%
    assert store.num_events == events
    assert store.timestamps.tolist() == [100, 200, 300, 400, 500][:events]
    assert "differs from the official file" in store.manifest["source"]["note"]


def test_ml_1m_with_its_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_dataset_spec("ml-1m-context", cache=tmp_path / "cache")
    archive = tmp_path / "mirror" / str(spec.file)
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ml-1m/movies.dat", "1::Toy Story (1995)::Animation\n")
        file.writestr("ml-1m/ratings.dat", DAT.replace("4.5", "4"))
        file.writestr("ml-1m/users.dat", "1::F::1::10::48067\n2::M::56::16::55117-1234\n3::M::25::15::02460\n")
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path / "mirror"))
    store = dataset_store(spec, tmp_path / "cache")
    assert store.features["actions"].tolist() == [4, 3, 2, 0, 0]
    assert store.actions == {"kind": "classes", "names": ["1", "2", "3", "4", "5"]}
    assert {name: codes.tolist() for name, codes in store.user_features.items()} == {
        name: [1, 2] for name in ("user_id", "sex", "age", "occupation", "zip")
    }
    assert store.user_feature_values("zip").tolist() == ["48067", "55117-1234"]
    plain = load_dataset_spec("ml-1m", cache=tmp_path / "cache")
    assert dataset_store(plain, tmp_path / "cache").user_features == {}


def test_ml_20m_half_stars_are_ten_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_dataset_spec("ml-20m-context", cache=tmp_path / "cache")
    archive = tmp_path / "mirror" / str(spec.file)
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ml-20m/ratings.csv", CSV)
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path / "mirror"))
    store = dataset_store(spec, tmp_path / "cache")
    assert store.features["actions"].tolist() == [9, 8, 5, 1, 1]
    assert store.actions is not None and len(store.actions["names"]) == 10
    assert store.user_feature_sizes == {"user_id": 3}


@pytest.mark.parametrize("edition", ["pure", "1k", "27k"])
def test_kuairand_configs_read_the_archive_and_the_unpacked_folder(
    edition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path / "mirror"))
    folder = small_edition(tmp_path / f"kuairand-{edition}", edition)
    spec = load_dataset_spec(f"kuairand-{edition}", cache=tmp_path / "cache")
    assert spec.path is None
    pack(folder, tmp_path / "mirror" / str(spec.file))
    packed = dataset_store(spec, tmp_path / "cache")
    unpacked = load_dataset_spec(f"kuairand-{edition}", cache=tmp_path)  # it lies where the configuration looks
    assert unpacked.path == folder and "local folder" in unpacked.note
    plain = dataset_store(unpacked, tmp_path)
    assert plain.manifest["content_hash"] == packed.manifest["content_hash"]
    assert packed.timestamps[0] == 1_649_347_200 and packed.user_ids().tolist() == [3, 7, 9]
    assert packed.actions is not None and packed.actions["names"][-1] == "profile_enter"
    assert packed.user_features["user_active_degree"].tolist() == [2, 1, 0]  # full_active, UNKNOWN, nothing said
    assert packed.user_features["follow_user_num_range"].tolist() == [1, 3, 2]
    (folder / "data" / f"user_features_{edition}.csv").write_text("user_id\n")
    with pytest.raises(DataError, match="columns missing"):  # the folder's content is part of the store's key
        dataset_store(unpacked, tmp_path)


def test_amazon_and_news_configs_read_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import polars as pl

    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path))
    tables = {
        "beauty": {"pos": [1, 0, 0], "timestamp": [1318896000, 1318896000, 1328140800]},
        "sports": {"pos": [1, 0, 0], "timestamp": [1390694400, 1390694400, 1391990400]},
        "toys": {"pos": [1, 0, 0], "seconds_since_first": [0, 0, 0]},
        "globo": {"timestamp": [1506826828020, 1506826828019, 1506826858020]},
    }
    for name, columns in tables.items():
        spec = load_dataset_spec(name)
        path = tmp_path / str(spec.file)
        path.parent.mkdir()
        pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 8, 9]} | columns).write_parquet(path)
        store = dataset_store(spec, tmp_path / "cache")
        assert store.items.tolist() == [2, 1, 3]
        assert store.manifest["timestamps"] == ("relative" if name == "toys" else "seconds")
        assert store.timestamps.max() < 2 * 10**9


def test_example_csv_config_works(tmp_path: Path) -> None:
    path = tmp_path / "example" / "clicks.csv"
    path.parent.mkdir()
    rows = [f"{c};{p};{1_700_000_000_000 + 1000 * p};x" for c in "abcdef" for p in range(5)]
    path.write_text("customer;product;clicked_at;page\n" + "\n".join([*rows, "zz;99;1700000000000;x"]))
    store = dataset_store(load_dataset_spec("example-csv", cache=tmp_path), tmp_path)
    assert store.user_ids().tolist() == list("abcdef")
    assert store.timestamps[:5].tolist() == list(range(1_700_000_000, 1_700_000_005))
    assert len(make_split(store, "leave-one-out").test) == 6


def test_aliases_and_nearest_name() -> None:
    assert load_dataset_spec("movielens").name == "ml-32m-past"
    assert load_dataset_spec("movielens").prepare.oldest_share == 0.8
    assert load_dataset_spec("beauty").name == "amazon-beauty-2014"
    with pytest.raises(ConfigError, match="unknown dataset 'ml-2m'.*did you mean 'ml-"):
        load_dataset_spec("ml-2m")


def test_local_recbole_conversion_of_ml_25m(tmp_path: Path) -> None:
    assert load_dataset_spec("ml-25m", cache=tmp_path).path is None
    (tmp_path / "ml-25m.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t5\t9\n2\t6\t8\n")
    spec = load_dataset_spec("ml-25m", cache=tmp_path)
    assert spec.path == (tmp_path / "ml-25m.inter").resolve()
    assert "local file ml-25m.inter instead of the official" in spec.note
    store = dataset_store(spec, tmp_path)
    assert store.num_events == 2
    assert "local file ml-25m.inter" in store.manifest["source"]["note"]


@pytest.mark.parametrize("name", ["clicks.inter", "clicks.csv", "clicks.txt"])
def test_a_data_file_is_a_dataset(tmp_path: Path, name: str) -> None:
    text = {
        "inter": "user_id:token\titem_id:token\ttimestamp:float\na\t1\t5.0\na\t2\t6\n",
        "csv": "user_id,item_id,timestamp\na,1,5\na,2,6\n",
        "txt": "a 1 5\na 2 6\n",
    }
    (tmp_path / name).write_text(text[name.split(".")[1]])
    store = dataset_store(load_dataset_spec(tmp_path / name), tmp_path)
    assert store.timestamps.tolist() == [5, 6]
    assert store.manifest["source"]["name"] == "clicks"
    with pytest.raises(DataError, match="no such data file"):
        load_dataset_spec(tmp_path / f"gone.{name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nfromat: csv\n", r"x.yaml:2: unknown key 'fromat'. did you mean 'format'"),
        ("name: x\nprepare:\n  min_ratin: 3\n", r"x.yaml:3: unknown key 'min_ratin'. did you mean 'min_rating'"),
        ("name: x\nprepare: {timestamp_unit: sec}\n", r"x.yaml:2: .*unknown timestamp_unit 'sec'"),
        ("name: x\nprepare: {min_rating: [1]}\n", r"x.yaml:2: .*min_rating"),
        ("name: x\nsize: many\n", r"x.yaml:2: size is not a int"),
        ("name: x\naliases: y\n", r"x.yaml:2: aliases is not a list"),
        ("format: csv\n", r"x.yaml: has no name"),
        ("- a\n", r"x.yaml: holds no keys"),
        ("name: [x\n", r"x.yaml: is not a readable YAML file"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_dataset_spec(path)


def test_yaml_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("u,i,t\n1,2,3\n")
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\noptions: {{user: u, item: i, timestamp: t}}\npath: {tmp_path}/log.csv\n")
    assert dataset_store(load_dataset_spec(path), tmp_path).num_events == 1


def test_store_is_rebuilt_only_when_its_inputs_change(tmp_path: Path) -> None:
    data = tmp_path / "clicks.txt"
    data.write_text("a 1 5\na 2 6\nb 1 7\n")
    spec = DatasetSpec(name="clicks", path=data)

    def built(options: PrepareOptions | None = None) -> tuple[str, int]:
        store = dataset_store(spec, tmp_path / "cache", options)
        return store.path.name, (store.path / "manifest.json").stat().st_mtime_ns

    first = built()
    assert built() == first
    other = built(PrepareOptions(min_user_events=2))
    assert other[0] != first[0] and built() == first
    data.write_text("a 1 5\na 2 6\nb 1 8\n")
    assert built()[0] not in (first[0], other[0])
    (tmp_path / "cache" / "stores" / first[0] / "items.npy").unlink()
    data.write_text("a 1 5\na 2 6\nb 1 7\n")
    assert built()[0] == first[0]  # the damaged store has been built anew
    assert dataset_store(spec, tmp_path / "cache").items.tolist() == [1, 2, 1]


@pytest.mark.parametrize("manifest", ["[]", "null", '{"source": null}', '{"source": []}', '{"arrays"'])
def test_a_store_whose_manifest_is_damaged_is_rebuilt(tmp_path: Path, manifest: str) -> None:
    data = tmp_path / "clicks.txt"
    data.write_text("a 1 5\na 2 6\nb 1 7\n")
    spec = DatasetSpec(name="clicks", path=data)
    path = dataset_store(spec, tmp_path / "cache").path / "manifest.json"
    whole = path.read_text()
    path.write_text(manifest)
    assert dataset_store(spec, tmp_path / "cache").num_events == 3
    assert path.read_text() == whole
    path.write_text(json.dumps({key: value for key, value in json.loads(whole).items() if key != "arrays"}))
    assert dataset_store(spec, tmp_path / "cache").num_events == 3
