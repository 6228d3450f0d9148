"""The popularity baseline scores by counts, whoever asks."""

from __future__ import annotations

import torch

from models.batch import SequenceBatch
from models.popularity import Popularity


def test_scores_are_counts_for_every_user() -> None:
    popularity = Popularity(torch.tensor([0, 5, 2, 16_777_215]))
    batch = SequenceBatch(
        offsets=torch.tensor([0, 2, 3]),
        items=torch.tensor([1, 3, 2]),
        timestamps=torch.tensor([1, 2, 3]),
        targets=torch.tensor([0, 1, 3]),
        request_time=torch.tensor([3, 4]),
        user_index=torch.tensor([0, 1]),
    )
    states = popularity.encode(batch)
    scores = popularity.score_block(states, torch.tensor([3, 1, 2]))
    assert popularity.num_items == 3
    assert scores.tolist() == [[16_777_215, 5, 2]] * 2
    assert "counts" in popularity.state_dict()
