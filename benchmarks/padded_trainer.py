"""The classic padded SASRec trainer, restated in our own words from the published PyTorch implementation's behaviour.

Rows of ``[B, L]`` padded on the left, positions 1 .. L, PyTorch's MultiheadAttention with a causal mask over the whole
rectangle, the point-wise layer as two convolutions of width 1, one uniform negative that the user has not seen for each
position, binary cross-entropy of targets and negatives, Adam with betas .9 and .98, a penalty on the table that is
computed even at weight 0, the loss read every step. LayerNorm after each residual sum, as its default is. Its sampler
is a loop in Python in processes beside the trainer: here a batch is drawn before the clock runs, as if sampling were
free.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from models.sasrec import SASRec, SASRecOptions
from pipelines.data.loader import Windows
from pipelines.data.store import SequenceStore

PaddedRows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Items, targets and negatives, each ``[B, L]`` int64, 0 where there is no token."""


class PointWise(nn.Module):
    """Two convolutions of width 1 with dropout after each, on ``[B, L, D]``."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inward, self.outward = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, D]`` to the same."""
        hidden = torch.relu(self.dropouts[0](self.inward(x.transpose(-1, -2))))
        return self.dropouts[1](self.outward(hidden)).transpose(-1, -2)


class PaddedSASRec(nn.Module):
    """The model.

    Args:
        num_items: items in the catalogue.
        options: sizes; the form is the one above.
    """

    def __init__(self, num_items: int, options: SASRecOptions) -> None:
        super().__init__()
        width, blocks, dropout = options.hidden, range(options.blocks), options.dropout
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(options.max_length + 1, width, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, options.heads, dropout) for _ in blocks)
        self.attention_norm = nn.ModuleList(nn.LayerNorm(width, eps=1e-8) for _ in blocks)
        self.point_wise = nn.ModuleList(PointWise(width, dropout) for _ in blocks)
        self.point_wise_norm = nn.ModuleList(nn.LayerNorm(width, eps=1e-8) for _ in blocks)
        self.last_norm = nn.LayerNorm(width, eps=1e-8)

    def states(self, rows: np.ndarray) -> Tensor:
        """States ``[B, L, D]`` of the items ``rows`` ``[B, L]``."""
        x = self.items(torch.from_numpy(rows)) * math.sqrt(self.items.embedding_dim)
        places = np.tile(np.arange(1, rows.shape[1] + 1), (rows.shape[0], 1)) * (rows != 0)
        x = self.dropout(x + self.positions(torch.from_numpy(places)))
        future = ~torch.tril(torch.ones((x.shape[1], x.shape[1]), dtype=torch.bool))
        parts = zip(self.attention, self.attention_norm, self.point_wise, self.point_wise_norm, strict=True)
        for attention, attention_norm, point_wise, point_wise_norm in parts:
            x = x.transpose(0, 1)
            attended, _ = attention(x, x, x, attn_mask=future)
            x = attention_norm(x + attended).transpose(0, 1)
            x = point_wise_norm(x + point_wise(x))
        return self.last_norm(x)

    def loss(self, rows: np.ndarray, targets: np.ndarray, negatives: np.ndarray) -> Tensor:
        """Mean over positions of the two binary cross-entropies, added: twice what models/losses/binary.py gives."""
        states = self.states(rows)
        positive = (states * self.items(torch.from_numpy(targets))).sum(-1)
        negative = (states * self.items(torch.from_numpy(negatives))).sum(-1)
        real = np.where(targets != 0)
        criterion = nn.BCEWithLogitsLoss()
        loss = criterion(positive[real], torch.ones_like(positive)[real])
        return loss + criterion(negative[real], torch.zeros_like(negative)[real])

    def copy_weights(self, task: SASRec) -> None:
        """Take the weights of our model, which must count positions from the newest token."""
        length = task.options.max_length
        with torch.no_grad():
            self.items.weight.copy_(task.item_embedding.weight)
            self.positions.weight[1:] = task.positions.table.weight.flip(0)[-length:]
        for place, block in enumerate(task.blocks):
            attention, point_wise = self.attention[place], self.point_wise[place]
            attention.load_state_dict(block.attention.state_dict())  # type: ignore[union-attr]
            self.attention_norm[place].load_state_dict(block.attention_residual.norm.state_dict())  # type: ignore[union-attr]
            self.point_wise_norm[place].load_state_dict(block.feed_forward_residual.norm.state_dict())  # type: ignore[union-attr]
            for name in ("inward", "outward"):
                linear, convolution = getattr(block.feed_forward, name), getattr(point_wise, name)
                convolution.load_state_dict({"weight": linear.weight[..., None], "bias": linear.bias})
        self.last_norm.load_state_dict(task.output_norm.state_dict())


class PaddedTrainer:
    """The classic loop's step.

    Args:
        model: of this file.
        lr: Adam's.
    """

    def __init__(self, model: PaddedSASRec, lr: float = 1e-3) -> None:
        self.model = model
        self.adam = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))

    def step(self, rows: PaddedRows, penalty: float = 0.0) -> float:
        """One update on a batch; its loss."""
        self.adam.zero_grad()
        loss = self.model.loss(*rows)
        for parameter in self.model.items.parameters():
            loss = loss + penalty * torch.norm(parameter)
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        return loss.item()


def padded_rows(
    store: SequenceStore, windows: Windows, chosen: np.ndarray, length: int, rng: np.random.Generator
) -> PaddedRows:
    """The windows ``chosen``, padded on the left to ``length``, with a negative unseen by its user for each target."""
    items = np.zeros((len(chosen), length), dtype=np.int64)
    targets, negatives = items.copy(), items.copy()
    for row, window in enumerate(chosen):
        start, end = int(windows.start[window]), int(windows.end[window])
        events = np.asarray(store.items[start : end + 1], dtype=np.int64)
        items[row, length - len(events) + 1 :], targets[row, length - len(events) + 1 :] = events[:-1], events[1:]
        first = int(store.offsets[windows.user[window]])
        seen = np.asarray(store.items[first : end + 1])
        unseen = np.setdiff1d(np.arange(1, store.num_items + 1), seen)
        negatives[row, length - len(events) + 1 :] = rng.choice(unseen, len(events) - 1)
    return items, targets, negatives
