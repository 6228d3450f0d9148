"""The stage train behind every kind of task: a training from its start or a checkpoint to the best weights.

Where the item table and the blocks lie (``embedding``, ``parallel``) decides which loop trains; data, checkpoints,
guards and events are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.ranking import Ranking
from models.tasks import Retrieval
from pipelines.config import RunConfig
from pipelines.errors import MachineError, RunError
from pipelines.run_folder import RunFolder
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from pipelines.training.distributed import this_world
from pipelines.training.guards import Rent
from pipelines.training.observers import Watch
from pipelines.training.run_log import RunLog, SilentLog
from pipelines.training.signals import StopSignal
from pipelines.training.state import TrainState, check_identity, load_best
from pipelines.training.trainer import Trainer, TrainingData

Task = Retrieval | Ranking


@dataclass(frozen=True)
class Session:
    """What a run brings to its training, whatever it trains.

    Attributes:
        folder: of the run.
        log: where events go.
        stop: SIGTERM and SIGINT.
        resume: the checkpoint to go on from, or None.
        watch: debug mode, or None.
        provenance: code digest and commit of this process.
    """

    folder: RunFolder
    log: RunLog | SilentLog
    stop: StopSignal
    resume: Path | None
    watch: Watch | None
    provenance: Mapping[str, str]


def train_task(
    config: RunConfig,
    session: Session,
    task: Task,
    data: TrainingData,
    *,
    identity: str,
    validate: Callable[[], Mapping[str, float]],
    **extra: Any,
) -> TrainState:
    """Train ``task``, which has the weights of the best validation afterwards.

    Args:
        config: the run.
        session: folder, log, signals, where to go on.
        task: on its device.
        data: windows and how they become batches.
        identity: digest that a checkpoint must match.
        validate: metrics on the validation queries.
        extra: what only some tasks give the trainer.

    Raises:
        MachineError: the GPU's memory does not hold a step.
        RunError: see :class:`Trainer`.
        Interrupted: SIGTERM or SIGINT; a checkpoint has been written.
    """
    trainer = _loop(config)(
        task,
        data,
        options=config.training,
        optimizer=config.optimizer,
        guards=config.guards,
        checkpoints=session.folder.checkpoints,
        log=session.log,
        validate=validate,
        stop=session.stop,
        identity=identity,
        provenance=session.provenance,
        watch=session.watch,
        world=this_world(),
        rent=Rent.so_far(),
        **extra,
    )
    if session.resume is not None:
        trainer.restore(session.resume)
    try:
        state = trainer.run()
    except torch.OutOfMemoryError as error:
        raise MachineError(
            "the GPU's memory does not hold a training step",
            where="loader",
            fix="set a smaller loader.rows_per_batch or loader.tokens_per_batch and begin anew with --resume never; "
            "`recpod estimate` says what fits",
        ) from error
    load_best(task, session.folder.checkpoints, state, this_world())
    if config.embedding.sharded:
        trainer.load_best_table()  # type: ignore[attr-defined]
    return state


def _loop(config: RunConfig) -> Callable[..., Trainer]:
    """The training loop for where table and blocks lie; TorchRec and Megatron-Core are imported where they are used."""
    embedding, parallel = config.embedding, config.parallel
    if parallel.tensor > 1 and embedding.sharded:
        from pipelines.training.dense.sharded_trainer import ParallelShardedTrainer

        return partial(ParallelShardedTrainer, embedding=embedding, parallel=parallel)
    if parallel.tensor > 1:
        from pipelines.training.dense.trainer import ParallelTrainer

        return partial(ParallelTrainer, parallel=parallel)
    if embedding.sharded:
        from pipelines.training.sparse.trainer import ShardedTrainer

        return partial(ShardedTrainer, embedding=embedding)
    return Trainer


def newest_checkpoint(folder: RunFolder) -> Path | None:
    """The run's newest checkpoint."""
    steps = checkpoint_steps(folder.checkpoints)
    return checkpoint_path(folder.checkpoints, steps[-1]) if steps else None


def put_best_weights(config: RunConfig, task: Task, folder: RunFolder, identity: str) -> TrainState:
    """Give ``task`` the weights of the best validation of a run that has been trained.

    Raises:
        RunError: no checkpoint, or one of another configuration.
    """

    def stand() -> TrainState:
        newest = newest_checkpoint(folder)
        if newest is None:
            raise RunError("there is no checkpoint to evaluate", where=str(folder.path), fix="train the run first")
        saved = load_checkpoint(newest)
        check_identity(saved, identity, newest)
        return TrainState(**saved["state"])

    world = this_world()
    state: TrainState = world.on_first(stand)
    if config.embedding.sharded:
        from pipelines.training.sparse.trainer import ShardedItems

        sharded = ShardedItems(task, config.embedding, config.optimizer)  # its checkpoints know no table of the task's
        load_best(task, folder.checkpoints, state, world)
        sharded.load(folder.checkpoints, state.best_step)
    else:
        load_best(task, folder.checkpoints, state, world)
    return state
