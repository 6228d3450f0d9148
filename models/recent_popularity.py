"""Most popular items of the last days before each request: the baseline that knows what time it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.batch import SequenceBatch

DAY = 86_400
_SPLIT = 1 << 12  # a place among the events in two numbers, each exact in fp32 up to 2^36 events


class RecentPopularity(nn.Module):
    """Scores an item by its events in the ``days`` before the request, whoever asks. It reads the request's time.

    The window ends at the request, or where the events end when the request is later: after a cut in time nothing newer
    is known. Items without an event in the window score 0 and tie.

    As a retrieval task its state is the window: the first and the last event in it, as places in time order.

    Args:
        items: ``[E]`` int, the item of each training event, 1 .. num_items, in any order.
        timestamps: ``[E]`` int64 seconds of the same events.
        num_items: size of the catalogue.
        days: length of the window.

    Raises:
        ValueError: a window that is not positive, or no events.
    """

    query_time = "aware"
    items: Tensor
    timestamps: Tensor

    def __init__(self, items: Tensor, timestamps: Tensor, num_items: int, days: float = 7.0) -> None:
        super().__init__()
        if days <= 0:
            raise ValueError(f"days must be positive, not {days}")
        if items.numel() == 0:
            raise ValueError("recent popularity needs at least one event")
        self.num_items, self.seconds = num_items, int(days * DAY)
        order = torch.argsort(timestamps, stable=True)
        self.register_buffer("items", items[order].to(torch.int64))
        self.register_buffer("timestamps", timestamps[order].to(torch.int64))

    def encode(self, batch: SequenceBatch) -> Tensor:
        """The window of each row's request as ``[U, 4]``: its first event and the one behind its last."""
        end = torch.minimum(batch.request_time, self.timestamps[-1] + 1)  # [U]
        places = torch.searchsorted(self.timestamps, torch.stack([end - self.seconds, end], dim=1))  # [U, 2]
        return torch.stack([places // _SPLIT, places % _SPLIT], dim=2).flatten(1).to(torch.float32)

    def score_block(self, states: Tensor, ids: Tensor) -> Tensor:
        """Events of the items ``ids`` ``[n]`` in the windows ``states`` ``[U, 4]``, ``[U, n]`` float32, whole numbers.

        The windows are gone through in time order. Each differs from the one before by some events that enter and some
        that leave, so the work is at most two steps for each event that lies in any window, and one sum down the rows.
        """
        wide = states.to(torch.int64).view(-1, 2, 2)
        windows = wide[:, :, 0] * _SPLIT + wide[:, :, 1]  # [U, 2]
        order = torch.argsort(windows.sum(1))  # all are equally long: sorted by time, neither end ever goes back
        begin, end = windows[order].unbind(1)  # [U], [U]
        before_begin, before_end = begin.roll(1), end.roll(1)
        before_begin[:1] = before_end[:1] = 0  # before the first window nothing was counted
        change = torch.zeros(len(states), len(ids) + 1, dtype=torch.int32, device=states.device)
        column = torch.full((self.num_items + 1,), len(ids), device=states.device)  # the last column is for the others
        column[ids] = torch.arange(len(ids), device=states.device)
        for first, stop, step in (
            (torch.maximum(begin, before_end), end, 1),
            (before_begin, torch.minimum(begin, before_end), -1),
        ):
            row, event = _ranges(first, stop)
            one = torch.full((1,), step, dtype=torch.int32, device=states.device).expand(len(row))
            change.view(-1).index_add_(0, row * change.shape[1] + column[self.items[event]], one)
        counts = change[:, :-1].cumsum(0, dtype=torch.int32)
        scores = torch.empty_like(counts, dtype=torch.float32)
        scores[order] = counts.to(torch.float32)
        return scores


def _ranges(first: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Every number of the ranges ``first[r] .. stop[r]``, and the row ``r`` it stands in; empty where stop < first."""
    lengths = (stop - first).clamp_(min=0)
    row = torch.repeat_interleave(torch.arange(len(first), device=first.device), lengths)
    begins = lengths.cumsum(0) - lengths
    return row, torch.arange(len(row), device=first.device) - (begins - first)[row]
