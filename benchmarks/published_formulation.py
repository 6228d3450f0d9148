"""SS4Rec as published, restated in plain PyTorch: the peer of the training-speed figure.

Source: Xiao et al. 2025, arXiv 2502.08132, and what its parts do on a machine without their CUDA kernels. Three things
make it what it is: every prefix of a history is a training row of its own, padded to the longest length, with one
target; S5's ``Bbar`` is built as a complex ``[B, L, P, H]`` tensor and scanned with a recursion in Python (as in
s5-pytorch); Mamba's ``exp(delta A)`` and ``delta B x`` are built as ``[B, E, L, N]`` and a Python loop walks over time
(as in mamba_ssm's reference function).

It computes with the parameters of our model and gives its numbers (a test holds the two together), so the ratio of
their speeds is the ratio of two ways to do the same thing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import SequenceBatch
from models.layers.mamba import Mamba
from models.layers.s5 import S5
from models.ss4rec import SS4Rec
from pipelines.data.loader import Windows, gather_batch
from pipelines.data.store import SequenceStore


def prefixes(
    store: SequenceStore, windows: Windows, count: int, max_length: int, rng: np.random.Generator
) -> SequenceBatch:
    """``count`` training targets drawn at random, each a row with the ``max_length`` events before it.

    Args:
        store: the sequences.
        windows: the training windows of our own loader; their targets are drawn from.
        count: rows, and targets, of the batch.
        max_length: events of a row at most.
        rng: draws.
    """
    before = np.cumsum(windows.lengths) - windows.lengths
    target = rng.integers(0, before[-1] + windows.lengths[-1], count)
    row = np.searchsorted(before, target, side="right") - 1
    end = windows.start[row] + (target - before[row]) + 1
    first = np.asarray(store.offsets)[windows.user[row]]
    chosen = Windows(windows.user[row], np.maximum(first, end - max_length), end)
    return gather_batch(store, chosen, last_target_only=True)


def recursive_scan(decay: Tensor, drive: Tensor) -> Tensor:
    """``x_t = decay_t x_{t-1} + drive_t`` over dim 1 of ``[B, L, P]``: joins neighbours, halves, fills the gaps."""
    length = drive.shape[1]
    if length == 1:
        return drive
    pairs = length // 2
    first_decay, first_drive = decay[:, : 2 * pairs : 2], drive[:, : 2 * pairs : 2]
    second_decay, second_drive = decay[:, 1::2], drive[:, 1::2]
    odd = recursive_scan(second_decay * first_decay, second_decay * first_drive + second_drive)  # x_1, x_3, ...
    later = decay[:, 2::2] * odd[:, : (length - 1) // 2] + drive[:, 2::2]
    even = torch.cat([drive[:, :1], later], dim=1)  # x_0, x_2, ...
    joined = torch.stack([even[:, :pairs], odd], dim=2).flatten(1, 2)
    return joined if length % 2 == 0 else torch.cat([joined, even[:, -1:]], dim=1)


def s5_published(layer: S5, u: Tensor, interval: Tensor) -> Tensor:
    """S5 on ``u`` ``[B, L, H]`` with ``interval`` ``[B, L]``; builds Bbar ``[B, L, P, H]``."""
    poles = torch.complex(-torch.exp(layer.log_decay), layer.frequency)  # [P]
    b, c = torch.complex(*layer.b.chunk(2, dim=0)), torch.complex(*layer.c.chunk(2, dim=1))  # [P, H], [H, P]
    step = interval[..., None] * torch.exp(layer.log_step)  # [B, L, P]
    decay = torch.exp(poles * step)  # [B, L, P]
    bbar = ((decay - 1) / poles)[..., None] * b  # [B, L, P, H]
    drive = torch.einsum("blph,blh->blp", bbar, u.to(bbar.dtype))
    states = recursive_scan(decay, drive)
    return (states @ c.T).real + layer.d * u


def mamba_published(layer: Mamba, x: Tensor) -> Tensor:
    """Mamba on ``x`` ``[B, L, H]``; builds two ``[B, E, L, N]`` tensors and loops over L."""
    length = x.shape[1]
    xs, z = layer.in_proj(x).transpose(1, 2).chunk(2, dim=1)  # [B, E, L]
    xs = functional.silu(layer.conv1d(xs)[..., :length])
    sizes = [layer.dt_rank, layer.d_state, layer.d_state]
    step, b, c = layer.x_proj(xs.transpose(1, 2)).split(sizes, dim=2)  # [B, L, R], [B, L, N], [B, L, N]
    delta = functional.softplus(layer.dt_proj(step)).transpose(1, 2)  # [B, E, L]
    decay = torch.exp(torch.einsum("bel,en->beln", delta, -torch.exp(layer.A_log)))
    drive = torch.einsum("bel,bln->beln", delta * xs, b)
    state, outputs = x.new_zeros(x.shape[0], xs.shape[1], layer.d_state), []  # [B, E, N]
    for t in range(length):
        state = decay[:, :, t] * state + drive[:, :, t]
        outputs.append(torch.einsum("ben,bn->be", state, c[:, t]))
    y = torch.stack(outputs, dim=2) + layer.D[:, None] * xs  # [B, E, L]
    return layer.out_proj((y * functional.silu(z)).transpose(1, 2))


class PublishedSS4Rec(nn.Module):
    """The published computation with the parameters of ``task``.

    Args:
        task: our model; its parameters are shared, not copied.
        max_length: every row is padded to it.
    """

    def __init__(self, task: SS4Rec, max_length: int) -> None:
        super().__init__()
        self.task, self.max_length = task, max_length

    def forward(self, batch: SequenceBatch) -> Tensor:
        """The state of each row's newest token, ``[B, H]``."""
        items = batch.jagged(batch.items).to_padded(self.max_length)  # [B, L]
        interval = batch.jagged(self.task.intervals(batch)).to_padded(self.max_length)
        x = self.task.input_norm(self.task.dropout(self.task.item_embedding(items)))  # [B, L, H]
        for block in self.task.blocks:
            if block.s5 is not None:
                x = block.s5_norm(block.dropout(s5_published(block.s5, x, interval)) + x)
            if block.mamba is not None:
                x = block.mamba_norm(block.dropout(mamba_published(block.mamba, x)) + x)
        return x[torch.arange(len(x)), batch.lengths - 1]

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Mean cross-entropy of each row's one target against all items."""
        logits = self(batch) @ self.task.item_embedding.weight[1:].T  # [B, items]
        return functional.cross_entropy(logits, batch.targets[batch.offsets[1:] - 1] - 1)
