"""Item-to-item neighbours by cosine over user histories: a baseline that learns nothing and reads the newest items.

Source: Deshpande & Karypis 2004, doi 10.1145/963770.963776 (each item keeps its own nearest neighbours).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.batch import Jagged, SequenceBatch

_CELLS_AT_A_TIME = 1 << 23  # cells of dense columns and similarities at a time: some 64 MB arrays of float64
_EXACT_IDS = 1 << 24  # whole numbers that float32 holds exactly


class ItemKNN(nn.Module):
    """Scores an item by the similarities of the newest items of a history that have it among their neighbours.

    ``similarity(i, j) = users with both / sqrt(users with i * users with j)``. Each item keeps its ``neighbours`` most
    similar others (of equals the one with the lower index). As a retrieval task its state is the newest items of the
    history themselves. The defaults are the best by NDCG@10 on the validation queries of both ML-1M and Amazon Beauty,
    among 20 to 400 neighbours and 1 to 50 items.

    Args:
        neighbour_ids: ``[num_items + 1, k]`` int64, the neighbours of each item, 0 where it has fewer.
        similarities: ``[num_items + 1, k]`` float32, 0 where there is none.
        newest: items of a history that are summed over, repeats included.

    Raises:
        ValueError: fewer than one item of history, or more than 2^24 items (a state is float32).
    """

    neighbour_ids: Tensor
    similarities: Tensor

    def __init__(self, neighbour_ids: Tensor, similarities: Tensor, newest: int = 2) -> None:
        super().__init__()
        if newest < 1:
            raise ValueError(f"newest must be at least 1, not {newest}")
        if len(neighbour_ids) > _EXACT_IDS:
            raise ValueError(f"item-kNN takes at most {_EXACT_IDS} items, not {len(neighbour_ids)}")
        self.num_items, self.newest = len(neighbour_ids) - 1, newest
        self.register_buffer("neighbour_ids", neighbour_ids)
        self.register_buffer("similarities", similarities)

    @classmethod
    def from_histories(cls, histories: Jagged, num_items: int, neighbours: int = 400, newest: int = 2) -> ItemKNN:
        """Count who has what, and keep each item's nearest.

        Args:
            histories: training events of each user, item indices 1 .. num_items; repeats count once.
            num_items: size of the catalogue.
            neighbours: kept of each item.
            newest: see the class.
        """
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, not {neighbours}")
        ids, similarities = nearest_items(histories, num_items, min(neighbours, num_items))
        return cls(ids, similarities, newest)

    def encode(self, batch: SequenceBatch) -> Tensor:
        """The ``newest`` items of each row, newest first, ``[U, newest]`` float32, 0 where the row is shorter."""
        back = torch.arange(self.newest, device=batch.items.device)
        place = batch.offsets[1:, None] - 1 - back  # [U, newest]
        items = batch.items[place.clamp(min=0)]
        return torch.where(place >= batch.offsets[:-1, None], items, 0).to(torch.float32)

    def score_block(self, states: Tensor, ids: Tensor) -> Tensor:
        """Sums of similarities of the items ``ids`` ``[n]`` to the histories ``states`` ``[U, newest]``, ``[U, n]``."""
        history = states.to(torch.int64)  # [U, m]
        column = torch.full((self.num_items + 1,), len(ids), device=states.device)  # the last column is for the others
        column[ids] = torch.arange(len(ids), device=states.device)
        scores = torch.zeros(len(states), len(ids) + 1, device=states.device)
        columns = column[self.neighbour_ids[history]].flatten(1)  # [U, m * k]
        scores.scatter_add_(1, columns, self.similarities[history].flatten(1))
        return scores[:, :-1]


def nearest_items(histories: Jagged, num_items: int, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` items of highest cosine to each item, without ``[items, items]`` or ``[users, items]``.

    Some items at a time: the sparse matrix of who has what times the dense columns of these items counts who has both.
    The work is (distinct user-item pairs) x (items): a second on ML-1M, minutes on ML-20M.

    Args:
        histories: item indices 1 .. num_items by user; repeats count once.
        num_items: size of the catalogue.
        count: neighbours kept.

    Returns:
        Ids ``[num_items + 1, count]`` int64 and cosines ``[num_items + 1, count]`` float32, best first; 0 and 0 where
        an item has fewer.
    """
    width, device = num_items + 1, histories.values.device
    pairs = torch.unique(histories.row_of_token() * width + histories.values.to(torch.int64))
    users, items = pairs // width, pairs % width
    norms = torch.bincount(items, minlength=width).clamp(min=1).double().sqrt()  # [items]
    by_item = torch.argsort(items, stable=True)
    users, items = users[by_item], items[by_item]
    has = torch.sparse_coo_tensor(
        torch.stack([items, users]),
        torch.ones(len(items), device=device),
        (width, histories.num_rows),
        is_coalesced=True,
        check_invariants=True,
    )
    ids = torch.zeros(width, count, dtype=torch.int64, device=device)
    similarities = torch.zeros(width, count, device=device)
    lower_wins = torch.arange(width, device=device) * -1e-13  # far below any difference of cosines that means something
    step = max(1, _CELLS_AT_A_TIME // (width + histories.num_rows))
    for first in range(1, width, step):
        stop = min(first + step, width)
        here = (items >= first) & (items < stop)
        columns = torch.zeros(histories.num_rows, stop - first, device=device)
        columns[users[here], items[here] - first] = 1
        together = torch.sparse.mm(has, columns).T  # [some, items], whole numbers
        together.diagonal(first).zero_()  # no item is its own neighbour
        cosine = together.double() / (norms[first:stop, None] * norms)
        best = (cosine + lower_wins).topk(count, dim=1).indices
        value = cosine.gather(1, best)
        ids[first:stop] = torch.where(value > 0, best, 0)
        similarities[first:stop] = value.float()
    return ids, similarities
