"""The scaling benchmark measures what it says: two processes share the batch of one, and all of it is counted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.hstu_scaling import ROWS, make_batch
from pipelines.training.distributed import World

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_share_the_batch_of_one() -> None:
    whole = make_batch(0, World())
    parts = [make_batch(0, World(rank, 2, rank)) for rank in range(2)]
    assert sum(part.num_rows for part in parts) == whole.num_rows == ROWS
    assert sorted(torch.cat([part.items for part in parts]).tolist()) == sorted(whole.items.tolist())
    pairs = [int(part.lengths.square().sum()) for part in parts]
    assert max(pairs) / min(pairs) < 1.01


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_figure_comes_out() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.hstu_scaling", "--steps=1", "--rounds=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=220)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = re.search(r"one ([\d,.]+), two ([\d,.]+), load", done.stdout)
    assert figures is not None and all(float(figure.replace(",", "")) > 0 for figure in figures.groups())
