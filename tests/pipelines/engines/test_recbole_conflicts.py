"""What parts RecBole from other packages is a line of preflight with a remedy, a failure only where RecBole trains."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipelines import preflight
from pipelines.cli import main
from pipelines.engines import recbole_conflicts
from pipelines.engines.recbole_conflicts import check_recbole
from pipelines.machine import installed_version
from pipelines.preflight import Check, PreflightOptions

NAMES = ("numpy", "pandas", "packages", "kmeans-pytorch", "ray", "torch.load")


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What the metadata say instead of the truth; None: not installed."""
    changed: dict[str, str | None] = {}

    def found(name: str) -> str | None:
        return changed[name] if name in changed else installed_version(name)

    monkeypatch.setattr(recbole_conflicts, "installed_version", found)
    return changed


def checks(*, used: bool) -> dict[str, Check]:
    return {check.name: check for check in check_recbole(used=used)}


def test_this_environment_has_none() -> None:
    assert {name: check.verdict for name, check in checks(used=True).items()} == {f"RecBole: {n}": "ok" for n in NAMES}


@pytest.mark.parametrize(
    ("package", "version", "line", "verdict", "found", "remedy"),
    [
        ("numpy", "2.4.6", "numpy", "ok", "np.float_ and its like are put back", ""),
        ("numpy", "1.26.4", "numpy", "ok", "1.26.4", ""),
        ("numpy", "3.0.0", "numpy", "fail", "3.0.0", "numpy 1 or 2"),
        ("pandas", "2.3.3", "pandas", "ok", "2.3.3", ""),
        ("pandas", "3.1.1", "pandas", "fail", "3.1.1: what RecBole fills in place stays empty", "'pandas<3'"),
        ("pandas", None, "pandas", "fail", "absent", "pandas"),
        ("colorlog", None, "packages", "fail", "missing: colorlog", "pip install colorlog"),
        ("kmeans-pytorch", None, "kmeans-pytorch", "warn", "its LDiffRec needs it", "pip install kmeans-pytorch"),
        ("ray", "2.6.3", "ray", "ok", "2.6.3", ""),
        ("ray", "2.40.0", "ray", "warn", "allows 2.6.3 at most", "pip uninstall ray"),
        ("ray", None, "ray", "ok", "a module stands in", ""),
        ("torch", "2.4.1", "torch.load", "ok", "torch 2.4.1 takes pickles", ""),
        ("recbole", "1.3.0", "torch.load", "fail", "not tried with RecBole 1.3.0", "pip install recbole==1.2.1"),
    ],
)
def test_each_conflict_is_one_line_with_its_remedy(
    versions: dict[str, str | None],
    package: str,
    version: str | None,
    line: str,
    verdict: str,
    found: str,
    remedy: str,
) -> None:
    versions[package] = version
    check = checks(used=True)[f"RecBole: {line}"]
    assert (check.verdict, found in check.found, remedy in check.remedy) == (verdict, True, True)
    assert bool(check.remedy) == (check.verdict != "ok")
    noted = checks(used=False)[f"RecBole: {line}"]
    assert noted.verdict == ("ok" if verdict == "ok" else "warn") and noted.found == check.found


def test_without_recbole_there_is_nothing_to_say_unless_it_is_to_train(versions: dict[str, str | None]) -> None:
    versions["recbole"] = None
    assert checks(used=False) == {}
    (check,) = checks(used=True).values()
    assert (check.verdict, check.found, "extra `data`" in check.remedy) == ("fail", "absent", True)


def test_preflight_fails_for_the_engine_alone(
    versions: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions["pandas"] = "3.1.1"
    monkeypatch.setattr(preflight, "check_kernels", lambda options: iter(()))
    codes = []
    for engine in ("recpod", "recbole"):
        options = PreflightOptions(device="cpu", folder=tmp_path, engine=engine)
        codes.append(preflight.verdict(preflight.run_preflight(options)))
    assert codes == [0, 2]
    with pytest.raises(preflight.MachineError, match=r"preflight: RecBole: pandas: 3.1.1.*pip install 'pandas<3'"):
        preflight.require_preflight(options, Console(file=io.StringIO()))
    monkeypatch.chdir(tmp_path)
    for arguments, code in ((["preflight"], 0), (["preflight", "--engine", "recbole"], 2)):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == code
    assert "RecBole: pandas" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["preflight", "--engine", "recbol"])
    assert "--engine: unknown engine 'recbol'. give recpod or recbole" in capsys.readouterr().err


def test_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recbole", "pandas", "ray", "kmeans_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would raise
    assert len(checks(used=True)) == len(NAMES)
