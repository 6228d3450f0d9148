"""Write docs/gpu-matrix.md from docker/gpu-matrix.json, the one place for what runs on which GPU and driver.

    .venv/bin/python docker/gpu_matrix.py [--check]

The JSON is also what the driver check before a run and the cost estimate read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docker" / "gpu-matrix.json"
PAGE = ROOT / "docs" / "gpu-matrix.md"

INTRODUCTION = """\
# GPUs, drivers and images

<!-- Made by docker/gpu_matrix.py from docker/gpu-matrix.json: change that file, then run it. -->

`recpod preflight` and the front door compare the machine with this table before anything is downloaded.
"""


def render(matrix: dict[str, Any]) -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION, images(matrix["images"]), generations(matrix), builds(matrix["builds"])]
    parts += [gpus(matrix["gpus"]), limited(matrix["gpus"]), notes(matrix["notes"])]
    return "\n".join(parts)


def images(rows: Sequence[dict[str, Any]]) -> str:
    """What each image holds and needs."""
    head = ("image", "status", "CUDA", "Python", "torch", "driver", "driver, at least", "made for", "mamba-ssm")
    table = [
        (
            f"`{row['tag']}`",
            row["status"],
            row["cuda"],
            row["python"],
            row["torch"],
            row["driver_min"],
            row["driver_min_compat"],
            ", ".join(row["capabilities"]) or "any CPU",
            row["mamba_ssm"],
        )
        for row in rows
    ]
    return section("Images", head, table)


def generations(matrix: dict[str, Any]) -> str:
    """One row a GPU generation: which image, which driver, which torch and mamba wheel."""
    head = ("generation", "capability", "first CUDA", "image", "driver, at least", "torch", "mamba-ssm wheel")
    wheels = {build["image"]: build["mamba_wheel"] for build in matrix["builds"]}
    table = []
    for row in matrix["generations"]:
        image = next(image for image in matrix["images"] if image["cuda"])
        within = set(row["capabilities"]) <= set(image["capabilities"])
        name = f"`{image['tag']}`" + ("" if within else " (limited)")
        wheel = wheels[image["tag"]] if within else None
        capabilities = ", ".join(row["capabilities"])
        table.append(
            (row["name"], capabilities, row["first_cuda"], name, row["driver_min"], image["torch"], wheel),
        )
    return section("By generation", head, table)


def builds(rows: Sequence[dict[str, Any]]) -> str:
    """Other builds of the same torch, for a base image of one's own."""
    head = ("CUDA", "driver", "driver, at least", "torch's kernels", "mamba-ssm wheel", "image here")
    table = [
        (
            row["cuda"],
            row["driver_min"],
            row["driver_min_compat"],
            ", ".join(row["capabilities"]),
            row["mamba_wheel"],
            f"`{row['image']}`" if row["image"] else "none",
        )
        for row in rows
    ]
    return section("Builds of this torch", head, table)


def gpus(rows: Sequence[dict[str, Any]]) -> str:
    """The table of GPUs."""
    head = ("GPU", "generation", "capability", "memory, GB", "GB/s", "bf16 TFLOP/s", "USD an hour", "source")
    table = [
        (
            row["name"] + ("" if row["support"] == "full" else " (limited)"),
            row["generation"],
            row["capability"],
            row["memory_gb"],
            row["bandwidth_gb_s"],
            row["bf16_tflops"],
            row["typical_price_per_hour_usd"],
            row["source"],
        )
        for row in rows
    ]
    return section("GPUs", head, table)


def limited(rows: Iterable[dict[str, Any]]) -> str:
    """What does not work where, and why."""
    by_note: dict[str, list[str]] = {}
    for row in rows:
        by_note.setdefault(row["note"], []).append(row["name"])
    lines = [f"- **{', '.join(names)}**: {note}." for note, names in by_note.items() if note]
    return "\n".join(["## What does not work", "", *lines, ""])


def notes(texts: dict[str, str]) -> str:
    """What each column means and where its figures come from."""
    return "\n".join(["## The columns", "", *(f"- `{name}`: {text}." for name, text in texts.items()), ""])


def section(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A heading and a table; what is absent is a dash."""
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join('-' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 when the page is not up to date"
    )
    check = parser.parse_args(arguments).check
    text = render(json.loads(SOURCE.read_text(encoding="utf-8")))
    same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
    if not same:
        print(f"{'not up to date:' if check else 'wrote'} {PAGE.relative_to(ROOT)}")
        if not check:
            PAGE.parent.mkdir(exist_ok=True)
            PAGE.write_text(text, encoding="utf-8")
    return int(check and not same)


if __name__ == "__main__":
    sys.exit(main())
