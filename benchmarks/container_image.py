"""How large is the cpu image, what is in it, and how long does its build take, at first and after a change of code?

    python -m benchmarks.container_image [--base IMAGE] [--changes 3] [--skip-cold]

Needs a container engine (``tests/containers/engine.sh start``). The cold build uses no layer of an earlier one; what
pip brings comes from its index and its find-links folders, so the network is part of the figure. A change of code is
one line appended to a file of pipelines/, to one of models/, or to one of the kernels, after which these are compiled
again, each in a copy of the checkout. Writes ``container-image-size``, ``container-build-seconds`` and
``container-rebuild-seconds``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.containers import ROOT, TAG, build, engine, existing
from benchmarks.result_file import RESULTS, write_result

COPIED = (".dockerignore", "Dockerfile", "configs", "docker", "entrypoints", "models", "pipelines", "pyproject.toml")
CHANGED = {"pipelines": "pipelines/runbook.py", "models": "models/ss4rec.py", "kernels": "models/kernels/compiled.py"}
LIST = """
import json, pathlib, sysconfig
from importlib import metadata
home = pathlib.Path(sysconfig.get_path("purelib"))
size = lambda path: sum(file.lstat().st_size for file in [path, *path.rglob("*")] if file.is_file())
folders = sorted(((size(path), path.name) for path in home.iterdir()), reverse=True)
packages = {d.metadata["Name"]: d.version for d in metadata.distributions()}
print(json.dumps({"megabytes": {name: round(n / 1e6, 1) for n, name in folders[:25]}, "packages": packages}))
"""


def contents(client: Any, tag: str) -> dict[str, Any]:
    """Layers of at least a megabyte, and what the environment's largest folders and all its packages are."""
    import json

    layers = [
        {"megabytes": round(layer["Size"] / 1e6, 1), "made_by": layer["CreatedBy"][:120]}
        for layer in existing(client, tag).history()
        if layer["Size"] > 1_000_000
    ]
    said = client.containers.run(tag, ["python", "-c", LIST], network_mode="none", remove=True)
    return {"layers": layers, **json.loads(said)}


def rebuilds(client: Any, tag: str, options: list[str], changes: int) -> dict[str, list[float]]:
    """Seconds of the build after each change of a line, by what was changed; the images made are removed again."""
    found: dict[str, list[float]] = {name: [] for name in CHANGED}
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        for name in (*COPIED, "runpod_entrypoint.sh"):
            source, target = ROOT / name, checkout / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        build(tag, options, root=checkout)
        made = [existing(client, tag).id]
        for number in range(changes):
            for name, path in CHANGED.items():
                with (checkout / path).open("a") as file:
                    file.write(f"# change {number} at {time.time_ns()}\n")
                found[name].append(round(build(tag, options, root=checkout), 2))
                made.append(existing(client, tag).id)
                print(f"rebuild after a change in {name}: {found[name][-1]} s", flush=True)
    for image in reversed(made):
        client.images.remove(image, force=True)
    return found


def report(claim: str, value: float, unit: str, target: str, met: bool, runs: Any, folder: Path) -> None:
    """One result file."""
    peer = "none: the image is this project's own"
    command = "python -m benchmarks.container_image"
    write_result(
        claim=claim,
        value=value,
        unit=unit,
        target=target,
        met=met,
        peer=peer,
        command=command,
        runs=runs,
        folder=folder,
    )
    print(f"{claim}: {value} ({target})", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="a Debian or Ubuntu image in the place of the pinned base")
    parser.add_argument("--changes", type=int, default=3, help="of each kind (default %(default)s)")
    parser.add_argument("--skip-cold", action="store_true", help="leave the cold build out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    client = engine()
    how = ["--pip-settings", *(["--base", options.base] if options.base else [])]
    base = options.base or "the pinned base"
    if not options.skip_cold:
        cold = round(build(TAG, how, cached=False), 1)
        unit = f"s, docker/build.sh without any cached layer, base image ({base}) at hand, packages from the index"
        report("container-build-seconds", cold, unit, "<= 900", cold <= 900, [cold], options.out)
    else:
        build(TAG, how)
    size = round(existing(client, TAG).attrs["Size"] / 1e9, 3)
    unit = f"GB (10^9 bytes), cpu image unpacked, base {base}, of which the environment's parts are in runs"
    report("container-image-size", size, unit, "< 2.5", size < 2.5, contents(client, TAG), options.out)
    again = rebuilds(client, "recpod-benchmark:rebuild", how, options.changes)
    slowest = max(max(seconds) for seconds in again.values())
    unit = "s, docker/build.sh after a line was appended to a file of pipelines/, models/ or the kernels, the slowest"
    report("container-rebuild-seconds", slowest, unit, "< 20", slowest < 20, again, options.out)


if __name__ == "__main__":
    main()
