"""The floor plan holds: nothing imports upwards, the core runs on torch and numpy alone, and files stay readable."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
CODE = ("models", "pipelines", "benchmarks", "docker")
EVERYWHERE = (*CODE, "tests", "entrypoints", "configs", ".ci")
MAX_FILE, MAX_FUNCTION = 400, 60

# From the ground up; a module belongs to its longest prefix. A floor may import its own and those below it.
FLOORS = {
    "models": 0,
    "pipelines.errors": 0,
    "pipelines.machine": 0,
    "pipelines.run_folder": 0,
    "pipelines.pod": 0,  # before anything is installed
    "pipelines.data": 1,
    "pipelines": 2,  # training, evaluation and the runbook's stages
    "pipelines.cli": 3,
    "pipelines.compat": 3,  # what the CLI translates with, and command lines of their own that hand over to it
    "pipelines.__main__": 4,
}
# These run where nothing but torch and numpy is installed.
LIGHT = (
    "pipelines.data.store",
    "pipelines.data.splits",
    "pipelines.data.loader",
    "pipelines.training.trainer",
    "pipelines.training.state",
    "pipelines.training.distributed",
    "pipelines.training.optimizers",
    "pipelines.training.checkpoint",
    "pipelines.training.guards",
)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or inside a function."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            submodules = [name for alias in node.names if module_exists(name := f"{node.module}.{alias.name}")]
            yield from submodules or [node.module]


def module_exists(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def floor_of(module: str) -> int | None:
    prefixes = [prefix for prefix in FLOORS if module == prefix or module.startswith(f"{prefix}.")]
    return FLOORS[max(prefixes, key=len)] if prefixes else None


@pytest.mark.parametrize("path", python_files("models", "pipelines"), ids=module_of)
def test_nothing_imports_upwards(path: Path) -> None:
    own = floor_of(module_of(path))
    assert own is not None
    above = [name for name in imports_of(path) if (floor := floor_of(name)) is not None and floor > own]
    assert above == []


def test_the_floors_are_real() -> None:
    assert floor_of("models.kernels.simd") == 0
    assert floor_of("pipelines.data.formats.csv") == 1
    assert floor_of("pipelines.training.trainer") == floor_of("pipelines.runbook") == 2
    assert floor_of("torch") is None
    assert all(module_exists(name) for name in (*FLOORS, *LIGHT))


def test_models_never_import_pipelines() -> None:
    assert not [
        path for path in python_files("models") if any(name.startswith("pipelines") for name in imports_of(path))
    ]


def test_nobody_but_the_command_line_imports_compat() -> None:
    users = {
        module_of(path) for path in python_files("models", "pipelines") for name in imports_of(path) if "compat" in name
    }
    assert {user for user in users if not user.startswith("pipelines.compat")} <= {"pipelines.cli"}


def test_code_does_not_import_tests_or_benchmarks() -> None:
    for path in python_files("models", "pipelines"):
        assert not [name for name in imports_of(path) if name.split(".")[0] in ("tests", "benchmarks", "docker")], path


BLOCK = """
import importlib, sys
from importlib import metadata
from packaging.requirements import Requirement

def needs(name):
    if name not in allowed:
        allowed.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needs(requirement.name.lower().replace("_", "-"))

allowed = set()
needs("torch"), needs("numpy")
blocked = {
    module
    for module, owners in metadata.packages_distributions().items()
    if not allowed & {owner.lower().replace("_", "-") for owner in owners}
} - {"models", "pipelines", "benchmarks", "tests", "__pycache__"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

assert {"polars", "pydantic", "rich", "numba", "yaml"} <= blocked
for name in [name for name in sys.modules if name.partition(".")[0] in blocked]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    importlib.import_module(name)
print("imported", len(sys.argv) - 1)
"""


def test_models_and_training_need_torch_and_numpy_alone() -> None:
    """With every other package hidden, they still import: on a rented machine nothing more may be there."""
    optional = re.compile(r"\.((cpu|triton)(_\w+)?|cuda|compiled|simd)$")  # kernel paths that bring their own compiler
    models = [name for path in python_files("models") if not optional.search(name := module_of(path))]
    command = [sys.executable, "-c", BLOCK, *models, *LIGHT]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["imported", str(len(models) + len(LIGHT))]


@pytest.mark.parametrize("path", python_files(*CODE, "tests"), ids=module_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE
    if path.is_relative_to(ROOT / "tests"):
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{node.name}: {lines} lines"


def test_shell_functions_stay_short() -> None:
    for path in (ROOT / "entrypoints").glob("*.sh"):
        text = re.sub(r"<<'HELP'\n.*?^HELP$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for name, body in re.findall(r"^(\w+)\(\) \{[^\n]*\n(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL):
            assert len(body.splitlines()) < 20, f"{path.name}: {name}"


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not [path for path in python_files(*CODE, "tests") if drawers & set(path.stem.split("_"))]


def test_no_file_knows_a_path_of_one_machine() -> None:
    own = r"opt/(?:recpod|venv)\b"  # inside the image
    private = re.compile(rf"(?<![\w./~])/(?!{own})(?:home|root|opt|mnt|srv|work|Users)/\w")
    files = [path for folder in EVERYWHERE for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.suffix in (".md", ".sh", ".toml")]
    texts = [path for path in files if path.suffix not in (".pyc", ".nbi", ".nbc") and "__pycache__" not in path.parts]
    assert len(texts) > 20
    found = [path for path in texts if private.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert found == []


def test_no_example_is_timed() -> None:
    """A busy machine would fail what is right: tests/conftest.py."""
    assert settings.default is not None and settings.default.deadline is None
