"""Steps and validations of an estimate are those of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import stages
from pipelines.estimate.measure import make_trainer
from pipelines.estimate.schedule import schedule_of
from pipelines.estimate.volume import find_volume
from tests.pipelines.estimate.conftest import tiny_config


@pytest.mark.parametrize(
    ("sets", "steps", "passes"),
    [
        (["training.max_steps=7"], 7, 1),
        (["training.max_steps=7", "training.eval_steps=2"], 7, 4),
        (["training.eval_steps=4", "training.max_steps=8"], 8, 2),
        (["training.max_steps=100000", "training.eval_every=2"], None, 2),
    ],
)
def test_a_limit_of_updates_ends_the_estimate_as_it_ends_the_run(
    tiny: Path, tmp_path: Path, sets: list[str], steps: int | None, passes: int
) -> None:
    """Steps and validations are the trainer's."""
    config = tiny_config(tiny, "training.patience=0", *sets)
    prepared = stages.prepare(config)
    trainer, asked = make_trainer(config, prepared, tmp_path / "work"), []
    trainer.validate = lambda: asked.append(1) or {"NDCG@10": 0.5}  # type: ignore[func-returns-value]
    state = trainer.run()
    schedule = schedule_of(config, find_volume(config))
    assert (schedule.steps, schedule.passes) == (state.step, len(asked)) == (steps or trainer.total_steps, passes)
    assert schedule.epochs == pytest.approx(state.step / schedule.steps_per_epoch)
