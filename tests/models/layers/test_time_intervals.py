"""Intervals by hand, and the exactness of int64 seconds."""

import math

import pytest
import torch

from models.batch import SequenceBatch
from models.layers.time_intervals import FLOOR, time_intervals


@pytest.fixture
def two_rows() -> SequenceBatch:
    times = torch.tensor([100, 100, 160, 5000, 8600]) + 978_300_000
    ids = torch.ones(5, dtype=torch.int64)
    request = torch.tensor([160 + 3600, 8600]) + 978_300_000
    return SequenceBatch(torch.tensor([0, 3, 5]), ids, times, ids, request, torch.arange(2))


def test_aware_looks_forward_and_to_the_request(two_rows: SequenceBatch) -> None:
    assert time_intervals(two_rows, query_time="aware", scaling="raw").tolist() == [0, 60, 3600, 3600, 0]


def test_blind_looks_back_and_never_at_the_request(two_rows: SequenceBatch) -> None:
    assert time_intervals(two_rows, query_time="blind", scaling="raw").tolist() == [0, 0, 60, 0, 3600]


def test_log_scaling_has_a_floor_and_an_hour_is_one_above_it(two_rows: SequenceBatch) -> None:
    steps = time_intervals(two_rows, query_time="aware", scaling="log1p")
    expected = [FLOOR, FLOOR + math.log(61) / math.log(3601), FLOOR + 1, FLOOR + 1, FLOOR]
    assert steps.tolist() == pytest.approx(expected)


def test_per_user_scaling_divides_by_the_rows_mean_gap_so_far(two_rows: SequenceBatch) -> None:
    steps = time_intervals(two_rows, query_time="aware", scaling="per_user")
    assert steps.tolist() == pytest.approx([FLOOR, FLOOR + 60 / 30, FLOOR + 3600 / 1220, FLOOR + 1, FLOOR])


def test_one_second_survives_at_todays_epoch() -> None:
    times = torch.tensor([1_700_000_000, 1_700_000_001])
    ids = torch.ones(2, dtype=torch.int64)
    batch = SequenceBatch(torch.tensor([0, 2]), ids, times, ids, times[-1:], torch.arange(1))
    assert time_intervals(batch, query_time="aware", scaling="raw").tolist() == [1, 0]  # float32 seconds would give 0
