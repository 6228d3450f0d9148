"""What a recipe may ask of a sharded table, refused early, in one line that names the key."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest

from pipelines.errors import ConfigError, MachineError
from pipelines.training.sparse.options import EmbeddingOptions, check_capacity, check_embedding
from pipelines.training.trainer import TrainingOptions

FINE: dict[str, Any] = {"loss": "sampled_softmax"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("training", "rest", "message"),
    [
        (
            {"grad_clip": 1.0},
            {},
            r"^training.grad_clip: a sharded table steps inside the backward pass, .*set it to 0\.$",
        ),
        ({"accumulate": 2}, {}, r"^training.accumulate: a sharded table steps inside the backward pass"),
        ({"precision": "float64"}, {}, r"^training.precision: a sharded table is float32"),
        ({}, {"item_l2": 0.1}, r"^optimizer.item_l2: row-wise Adagrad adds no penalty"),
        ({}, {"loss": "softmax"}, r"^model.loss.name: softmax multiplies with the whole table.* use sampled_softmax"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    training: dict[str, Any], rest: dict[str, Any], message: str
) -> None:
    options = TrainingOptions(**training)
    with pytest.raises(ConfigError, match=message) as caught:
        check_embedding(EmbeddingOptions("row_wise"), options, **{**FINE, **rest})
    assert "embedding.sharding: row_wise" in str(caught.value) and "\n" not in str(caught.value)
    check_embedding(EmbeddingOptions(), options, **{**FINE, **rest})  # every process has the table: all is well


def test_a_recipe_that_fits_is_taken() -> None:
    check_embedding(EmbeddingOptions("table_wise"), TrainingOptions(), **FINE)


def test_the_extra_is_named_where_torchrec_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = (
        "^embedding.sharding: auto: needs torchrec, which is not installed. Install extra hstu: entrypoints/setup.sh"
    )
    with pytest.raises(MachineError, match=message):
        check_capacity(EmbeddingOptions("auto"), 1)
    check_capacity(EmbeddingOptions(), 1)


def test_rows_of_a_managed_table_divide_over_the_processes(installed: None) -> None:
    options = EmbeddingOptions("row_wise", capacity=12)
    check_capacity(options, 3)
    with pytest.raises(ConfigError, match=r"^embedding\.capacity: 12 rows do not divide over 5 processes"):
        check_capacity(options, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharding": "row_wize"}, "embedding.sharding: 'row_wize' is no sharding. did you mean 'row_wise'?"),
        ({"eviction": "fifo", "sharding": "auto"}, "embedding.eviction: 'fifo' is no eviction"),
        ({"capacity": 8, "sharding": "table_wise"}, "embedding.capacity: managed ids are spread by rows"),
        ({"capacity": -1}, "embedding.capacity: -1 is negative"),
        ({"lr_scale": 0.0}, "embedding.lr_scale: 0.0 is not a positive factor"),
        ({"eviction_interval": 0}, "embedding.eviction_interval: 0 is less than 1"),
    ],
)
def test_values_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EmbeddingOptions(**options)
    assert message in str(caught.value)


def test_the_options_load_neither_torch_nor_torchrec() -> None:
    code = (
        "import sys; import pipelines.training.sparse.options, pipelines.training.dense.options; "
        "sys.exit(bool({'torch', 'torchrec', 'megatron'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
