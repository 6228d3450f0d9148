"""A tiny recipe on a generated file, and what was supposedly measured for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config import RunConfig, load_config
from pipelines.estimate.throughput import Measurement

TINY = """
name: tiny
dataset: {data}
model: {{name: ss4rec, hidden: 16, s5_state: 4, d_state: 4, layers: 1}}
loader: {{max_length: 10, windows: all, rows_per_batch: 16}}
training: {{epochs: 3, patience: 1}}
tracking: {{wandb: "off"}}
runs: {folder}/runs
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of 60 users with 5 to 34 events each."""
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))
    data = tmp_path / "clicks.csv"
    rows = [f"{u},{(u * 7 + i) % 40},{1000 * u + 60 * i}" for u in range(60) for i in range(5 + u % 30)]
    data.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY.format(data=data, folder=tmp_path))
    return recipe


def measurement(config: RunConfig, **changes: object) -> Measurement:
    """A made-up measurement of just this recipe's model and batch: 1,000 targets a second, 10 ms a step at least."""
    resolved = config.resolved()
    values: dict[str, object] = {
        "recipe": config.recipe,
        "dataset": config.dataset.name,
        "items": 40,
        "model": resolved["model"],
        "loader": resolved["loader"],
        "accumulate": 1,
        "narrow": 4,
        "loss": 4,
        "shared_length": 8.0,
        "targets_per_s": (500.0, 1000.0, 1500.0),
        "targets_per_step": 100.0,
        "step_overhead_s": 0.01,
        "query_tokens": 8.0,
        "encode_queries_per_s": 100.0,
        "rank_queries_per_s": 200.0,
        "save_s": 0.5,
        "startup_s": 7.0,
        "speeds": {"float32_flop_per_s": 1e11, "loss_flop_per_s": 2e11, "bytes_per_s": 1e10},
        "measured_on": {},
    }
    return Measurement(**{**values, **changes})  # type: ignore[arg-type]


def tiny_config(recipe: Path, *sets: str) -> RunConfig:
    """The recipe with the loss in float32, so that the processor does not matter."""
    return load_config(recipe, ["model.loss.precision=float32", *sets])
