"""What the processes of a gang do with whole recipes: a small file of clicks, the runbook's own stages."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipelines import runbook
from pipelines.config import RunConfig, load_config
from pipelines.errors import RecPodError
from pipelines.runbook import RunChoices
from pipelines.training.distributed import World

USERS, ITEMS, EVENTS = 48, 20, 12
RECIPE = """
name: tiny
dataset: {{name: {folder}/clicks.csv, cache: {folder}/data}}
model: {{name: hstu, hidden: 16, blocks: 2, heads: 4, max_length: 10, dropout: 0.0, norm_affine: true,
  loss: {{name: sampled_softmax, num_negatives: 8, precision: float32}}}}
loader: {{max_length: 10, windows: all, rows_per_batch: 16}}
optimizer: {{lr: 0.01}}
training: {{epochs: 2, patience: 0, log_every: 1}}
evaluation: {{beyond_accuracy: false}}
tracking: {{wandb: "off"}}
device: cpu
runs: {folder}/runs
"""
RANKING = """
name: rated
dataset: {{name: {folder}/rated.yaml, cache: {folder}/data}}
model: {{name: hstu-ranking, hidden: 16, max_length: 20, heads: 2, head: [16, 3], dropout: 0.0}}
loader: {{max_length: 20, windows: all, rows_per_batch: 8}}
optimizer: {{lr: 0.01}}
training: {{epochs: 2, select: AUC, log_every: 1}}
evaluation: {{protocol: ranking-last}}
tracking: {{wandb: "off"}}
device: cpu
runs: {folder}/runs
"""


def write_recipes(folder: Path) -> None:
    """Item ``i`` is mostly followed by ``i + 1``; ratings depend on the item."""
    rows = [
        f"{u},{(u * 7 + i + (i % 5 == 4) * u) % ITEMS},{1000 * u + 60 * i}" for u in range(USERS) for i in range(EVENTS)
    ]
    (folder / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    (folder / "tiny.yaml").write_text(RECIPE.format(folder=folder))
    items = np.random.default_rng(0).integers(0, 12, 40 * 14)
    rated = [f"{k // 14},{item},{k},{item % 3 + 1}" for k, item in enumerate(items)]
    (folder / "ratings.csv").write_text("user_id,item_id,timestamp,rating\n" + "\n".join(rated) + "\n")
    (folder / "rated.yaml").write_text(
        f"name: rated\nformat: csv\noptions: {{rating: rating}}\npath: {folder}/ratings.csv\n"
        "prepare: {rating_levels: [1, 2, 3], user_features: [user_id]}\n"
    )
    (folder / "ranking.yaml").write_text(RANKING.format(folder=folder))


def as_launched(world: World) -> None:
    """This process as launch.sh would have started it."""
    size, rank = str(world.size), str(world.rank)
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": size, "RANK": rank, "LOCAL_RANK": rank}


def ran(world: World | None, folder: Path, name: str, *sets: str, recipe: str = "tiny", stage: Any = None) -> Any:
    """Run a recipe; what came of it, or the line and code of the mistake."""
    if world is not None:
        as_launched(world)
    try:
        config = load_config(folder / f"{recipe}.yaml", [f"name={name}", *sets])
        console = Console(quiet=True)
        if stage is not None:
            stage(config, console)
        else:
            runbook.run(config, RunChoices(preflight=False), console)
    except RecPodError as error:
        return f"{error.exit_code} {error}"
    return outcome(config)


def evaluated(config: RunConfig, console: Console) -> None:
    """The stage evaluate alone, of what somebody else has trained."""
    (config.folder / "metrics.json").unlink(missing_ok=True)
    runbook.evaluate_only(config, console)


def outcome(config: RunConfig) -> dict[str, Any]:
    """Losses of all updates, metrics, and what the page names."""
    events = [json.loads(line) for line in (config.folder / "events.jsonl").read_text().splitlines()]
    metrics = json.loads((config.folder / "metrics.json").read_text())
    return {
        "losses": [event["loss"] for event in events if event["kind"] == "train"],
        "norms": [event["grad_norm"] for event in events if event["kind"] == "train"],
        "valid": [event for event in events if event["kind"] == "valid"],
        "test": metrics["test"],
        "training": metrics["training"],
        "page": (config.folder / "report.html").is_file(),
    }


def close(first: Sequence[float], second: Sequence[float], rel: float = 1e-5) -> bool:
    """Whether two runs have the same losses, to rounding."""
    return len(first) == len(second) > 0 and bool(np.allclose(first, second, rtol=rel, atol=0))
