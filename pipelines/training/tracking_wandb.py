"""Weights & Biases: the only file that imports it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import AuthenticationError, CommError, UsageError

from pipelines.errors import ConfigError
from pipelines.training.events import EventLog
from pipelines.training.tracking import Status, TrackingOptions, describe_error

_INIT_SECONDS = 30.0  # W&B's own default of 90 is a third of a quick start
# A scheduler kills 10 s after SIGTERM; what is not uploaded by then stays in the run's folder. Offline nothing is sent:
# there the file must be whole, also on a machine that is busy.
_FINISH_SECONDS = {"online": 5.0, "offline": 60.0}

logger = logging.getLogger(__name__)


class WandbTracker:
    """One W&B run.

    Args:
        run: from ``wandb.init``.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        run.define_metric("*", step_metric="global_step")

    @property
    def run_ids(self) -> dict[str, str]:
        """``{"wandb": id}``."""
        return {"wandb": self.run.id}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row of the run's history. W&B's own step only counts rows: it cannot go back, as a resumed run does."""
        self.run.log({"global_step": step, **values})

    def summary(self, values: Mapping[str, float]) -> None:
        """The run's final numbers."""
        self.run.summary.update(dict(values))

    def finish(self, status: Status) -> None:
        """Close the run; W&B shows any exit code but 0 as failed."""
        self.run.summary["status"] = status
        self.run.finish(exit_code={"finished": 0, "interrupted": 75}.get(status, 1))


def open_wandb(
    options: TrackingOptions, *, mode: str, run_name: str, config: Mapping[str, Any], folder: Path, run_id: str | None
) -> WandbTracker:
    """Start a run, or go on with ``run_id``.

    A W&B that cannot be reached costs half a minute, one warning line and an event; the run then goes on offline.

    Args:
        options: project and entity.
        mode: "online" or "offline".
        run_name: shown by W&B.
        config: nested, free of secrets.
        folder: the run's folder; W&B makes ``wandb/`` in it.
        run_id: of the run to go on with, or None.

    Raises:
        ConfigError: the key is not accepted.
    """
    run_id = run_id or secrets.token_hex(4)
    try:
        return WandbTracker(_init(options, mode, run_name, config, folder, run_id))
    except (AuthenticationError, UsageError) as error:
        raise ConfigError(
            f"W&B does not accept the key ({describe_error(error)})",
            where="WANDB_API_KEY",
            fix="correct it, or use --no-wandb",
        ) from error
    except CommError as error:
        later = f"`wandb sync {folder / 'wandb'}/offline-*` uploads it"
        message = f"cannot be reached ({describe_error(error)}); tracking offline, {later}"
        logger.warning("wandb %s", message)
        events = EventLog(folder / "events.jsonl")
        events.write("tracker", step=-1, epoch=-1, tracker="wandb", message=message)
        events.close()
        wandb.teardown()  # W&B's service still holds the id of the run that did not start
    return WandbTracker(_init(options, "offline", run_name, config, folder, run_id))


def _init(
    options: TrackingOptions, mode: str, run_name: str, config: Mapping[str, Any], folder: Path, run_id: str
) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=options.project,
        entity=options.entity,
        name=run_name,
        id=run_id,
        resume="allow",  # "must" fails offline, and for a run that died before its first upload
        mode=mode,  # type: ignore[arg-type]
        dir=str(folder),
        config=dict(config),
        settings=wandb.Settings(
            silent=True,
            console="off",  # it would take over stdout, which the progress display owns
            disable_git=True,  # a remote's address may carry a token; environment.json names the commit
            disable_code=True,
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS[mode],
        ),
    )
