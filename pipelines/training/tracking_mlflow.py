"""MLflow: the only file that imports it. Uses its client alone, so that no global state of a caller's is touched."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

# Read when mlflow is imported. Its defaults retry for minutes, in which a GPU would wait for a dashboard.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from pipelines.errors import ConfigError
from pipelines.training.tracking import Status, TrackingOptions, describe_error, without_secrets

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_PARAMS_AT_A_TIME, _LONGEST_PARAM = 100, 6000  # MLflow's own limits


class MlflowTracker:
    """One MLflow run.

    Args:
        client: connected to the tracking address.
        run_id: of the run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id

    @property
    def run_ids(self) -> dict[str, str]:
        """``{"mlflow": id}``."""
        return {"mlflow": self.run_id}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics at a step; ``HR@10`` becomes ``HR_at_10``, since MLflow refuses the sign."""
        now = int(time.time() * 1000)
        metrics = [Metric(metric_name(key), float(value), now, step) for key, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def summary(self, values: Mapping[str, float]) -> None:
        """Final numbers, as metrics at step 0."""
        self.log(0, values)

    def finish(self, status: Status) -> None:
        """Close the run."""
        self.client.set_terminated(self.run_id, _STATUS[status])


def open_mlflow(
    options: TrackingOptions, *, run_name: str, config: Mapping[str, Any], run_id: str | None
) -> MlflowTracker:
    """Start a run with its configuration as parameters, or go on with ``run_id``.

    Raises:
        ConfigError: the tracking server cannot be used, or has no such run.
    """
    try:
        client = MlflowClient(tracking_uri=options.mlflow)
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")
            return MlflowTracker(client, run_id)
        experiment = client.get_experiment_by_name(options.project)
        experiment_id = client.create_experiment(options.project) if experiment is None else experiment.experiment_id
        run = client.create_run(experiment_id, run_name=run_name)
        params = [Param(metric_name(key), str(value)[:_LONGEST_PARAM]) for key, value in flatten(config)]
        for first in range(0, len(params), _PARAMS_AT_A_TIME):
            client.log_batch(run.info.run_id, params=params[first : first + _PARAMS_AT_A_TIME])
    except MlflowException as error:
        raise ConfigError(
            f"MLflow cannot be used there ({describe_error(error)})",
            where=f"tracking.mlflow={without_secrets(options.mlflow)}",
            fix="start the server, correct the address, or set it to off",
        ) from error
    return MlflowTracker(client, run.info.run_id)


def metric_name(key: str) -> str:
    """``key`` in the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("@", "_at_"))


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
