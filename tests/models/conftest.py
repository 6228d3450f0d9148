"""Small random batches for models."""

import pytest
import torch

from models.batch import SequenceBatch


def random_batch(lengths: list[int], num_items: int = 30, seed: int = 0) -> SequenceBatch:
    """Rows of the given lengths with times that never decrease and a request after the newest event."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    tokens = int(offsets[-1])
    gaps = torch.randint(0, 5000, (tokens,), generator=generator) * torch.randint(0, 2, (tokens,), generator=generator)
    times = gaps.cumsum(0) + 978_300_000
    return SequenceBatch(
        offsets=offsets,
        items=torch.randint(1, num_items + 1, (tokens,), generator=generator),
        timestamps=times,
        targets=torch.randint(1, num_items + 1, (tokens,), generator=generator),
        request_time=times[offsets[1:] - 1] + 77,
        user_index=torch.arange(len(lengths)),
    )


@pytest.fixture
def batch() -> SequenceBatch:
    return random_batch([5, 1, 9, 3])
