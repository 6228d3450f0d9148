"""Binary cross-entropy against k negatives, as SASRec trains, and its calibrated form gBCE.

Sources: Kang & McAuley 2018 (SASRec), arXiv 1808.09781; Petrov & Macdonald 2023 (gSASRec), arXiv 2308.07192.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses.gradients import (
    LossAndGradients,
    Precision,
    Wanted,
    compute_dtype,
    counted_rows,
    pad_rows,
    product_rows,
    tokens_at_a_time,
    wide_dtype,
    with_gradients,
)


def gbce_target_weight(num_items: int, num_negatives: int, calibration: float) -> float:
    """The power ``beta`` that gBCE raises the target's probability to.

    ``beta = alpha (t (1 - 1 / alpha) + 1 / alpha) = 1 - t (1 - alpha)`` with the sampling rate
    ``alpha = k / (num_items - 1)``. With ``t = 0`` it is 1, plain BCE, whose scores are overconfident by as much as
    negatives are rare; with ``t = 1`` it is ``alpha``, and a probability means what it says.

    Args:
        num_items: size of the catalogue.
        num_negatives: uniform negatives of a token, ``k``; at or beyond ``num_items - 1`` nothing is to be corrected.
        calibration: ``t``, 0 .. 1.
    """
    rate = min(num_negatives / max(num_items - 1, 1), 1.0)
    return 1.0 - calibration * (1.0 - rate)


def binary_cross_entropy(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    target_weight: float = 1.0,
    counted: Tensor | None = None,
    chunk: int | None = None,
    precision: Precision = "auto",
) -> Tensor:
    """``-beta log sigmoid(score(target)) - sum log sigmoid(-score(negative))`` over ``1 + k``, summed over tokens.

    The division by the number of terms is gSASRec's; SASRec's own code adds the two terms of ``k = 1`` without it, so
    its value is twice this one. A negative that is the token's target is no term of that token. Negatives shared by all
    tokens cost one matrix product; negatives of each token's own are fetched row by row.

    Args:
        states: ``[M, D]``; M may be 0.
        table: ``[num_items + 1, D]``; only the rows named are read, row 0 gets zero gradient.
        targets: ``[M]`` int64, 1 .. num_items.
        negatives: ``[K]`` int64, shared by all tokens, or ``[M, k]``, each token's own; 1 .. num_items, repeats are
            allowed.
        target_weight: ``beta``, 1 for plain BCE; see :func:`gbce_target_weight`.
        counted: ``[M]`` bool, tokens whose values are summed; the states of the others must be zero, and so is then
            what they add to the gradient of the table. None: all.
        chunk: tokens whose logits, or whose negatives' rows ``[chunk, k, D]``, are held at a time.
        precision: of the matrix products with shared negatives; all else is float32.

    Returns:
        Scalar sum, float32 (float64 for float64 states). It can be differentiated once.

    Raises:
        ValueError: no negatives, or negatives of another shape.
    """
    own = negatives.ndim == 2 and negatives.shape[0] == targets.numel()
    if not (own or negatives.ndim == 1) or negatives.shape[-1] == 0:
        raise ValueError(f"negatives must be [K] or [M, k] with M = {targets.numel()}, not {list(negatives.shape)}")

    def compute(wanted: Wanted) -> LossAndGradients:
        if own:
            return _own_negatives(states, table, targets, negatives, target_weight, counted, chunk, wanted)
        return _shared_negatives(states, table, targets, negatives, target_weight, counted, chunk, precision, wanted)

    return with_gradients(states, table, compute)


def _terms(target_score: Tensor, scores: Tensor, valid: Tensor, target_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's loss, and d loss / d score of target and negatives.

    Args:
        target_score: ``[C, 1]``.
        scores: ``[C, k]``, of the negatives.
        valid: ``[C, k]`` bool, False where the negative is the target.
        target_weight: ``beta``.

    Returns:
        ``[C, 1]``, ``[C, 1]`` and ``[C, k]``.
    """
    counted = valid.to(scores.dtype)
    share = 1 / (1 + counted.sum(1, keepdim=True))  # [C, 1]
    loss = share * (target_weight * F.softplus(-target_score) + (F.softplus(scores) * counted).sum(1, True))
    target_slope = torch.sigmoid(-target_score).mul_(share).mul_(-target_weight)
    return loss, target_slope, torch.sigmoid(scores).mul_(counted).mul_(share)


def _shared_negatives(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    target_weight: float,
    counted: Tensor | None,
    chunk: int | None,
    precision: Precision,
    wanted: Wanted,
) -> LossAndGradients:
    dtype, wide = compute_dtype(states, precision), wide_dtype(states)
    tokens, size = states.shape[0], tokens_at_a_time(negatives.numel(), states.device, chunk)
    negative_rows = table.index_select(0, negatives).to(dtype)  # [K, D]
    loss = states.new_zeros((), dtype=wide)
    grad_states = torch.empty_like(states) if wanted.states else None
    grad_table = torch.zeros_like(table) if wanted.table else None
    grad_negatives = torch.zeros_like(negative_rows, dtype=wide) if wanted.table else None
    for start in range(0, tokens, size):
        rows = slice(start, min(start + size, tokens))
        chunk_states, chunk_targets = states[rows].to(dtype), targets[rows]  # [C, D], [C]
        count, padded = len(chunk_states), product_rows(len(chunk_states), size)
        target_rows = table.index_select(0, chunk_targets).to(dtype).to(wide)  # [C, D]
        target_score = (chunk_states.to(wide) * target_rows).sum(1, keepdim=True)  # [C, 1]
        scores = torch.mm(pad_rows(chunk_states, padded), negative_rows.t())[:count].to(wide)  # [C, K]
        terms, target_slope, slope = _terms(target_score, scores, chunk_targets[:, None] != negatives, target_weight)
        loss += counted_rows(terms, counted, rows).sum()
        if not wanted.any:
            continue
        weights = pad_rows(slope.to(dtype), padded)  # d loss / d scores
        if grad_states is not None:
            grad_states[rows] = torch.mm(weights, negative_rows)[:count] + target_slope * target_rows
        if grad_table is not None and grad_negatives is not None:
            grad_negatives += torch.mm(weights.t(), pad_rows(chunk_states, padded))
            grad_table.index_add_(0, chunk_targets, (target_slope * chunk_states).to(table.dtype))
    if grad_table is not None and grad_negatives is not None:
        grad_table.index_add_(0, negatives, grad_negatives.to(table.dtype))
    return LossAndGradients(loss, grad_states, grad_table)


def _own_negatives(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    target_weight: float,
    counted: Tensor | None,
    chunk: int | None,
    wanted: Wanted,
) -> LossAndGradients:
    wide, (tokens, dim), k = wide_dtype(states), states.shape, negatives.shape[1]
    size = tokens_at_a_time(k * dim, states.device, chunk)
    loss = states.new_zeros((), dtype=wide)
    grad_states = torch.empty_like(states) if wanted.states else None
    grad_table = torch.zeros_like(table) if wanted.table else None
    for start in range(0, tokens, size):
        rows = slice(start, min(start + size, tokens))
        chunk_states, chunk_targets, chunk_negatives = states[rows].to(wide), targets[rows], negatives[rows]
        target_rows = table.index_select(0, chunk_targets).to(wide)  # [C, D]
        negative_rows = table.index_select(0, chunk_negatives.flatten()).to(wide).view(-1, k, dim)  # [C, k, D]
        target_score = (chunk_states * target_rows).sum(1, keepdim=True)  # [C, 1]
        scores = _products(negative_rows, chunk_states)  # [C, k]
        valid = chunk_negatives != chunk_targets[:, None]
        terms, target_slope, slope = _terms(target_score, scores, valid, target_weight)
        loss += counted_rows(terms, counted, rows).sum()
        if grad_states is not None:
            push = (
                slope * negative_rows[:, 0] if k == 1 else torch.bmm(slope[:, None, :], negative_rows)[:, 0]
            )  # [C, D]
            grad_states[rows] = (push + target_slope * target_rows).to(states.dtype)
        if grad_table is not None:
            push = (slope[:, :, None] * chunk_states[:, None, :]).view(-1, dim).to(table.dtype)  # [C * k, D]
            grad_table.index_add_(0, chunk_negatives.flatten(), push)
            grad_table.index_add_(0, chunk_targets, (target_slope * chunk_states).to(table.dtype))
    return LossAndGradients(loss, grad_states, grad_table)


def _products(negative_rows: Tensor, states: Tensor) -> Tensor:
    """Scores ``[C, k]`` of rows ``[C, k, D]`` for states ``[C, D]``; one row each needs no BLAS."""
    if negative_rows.shape[1] == 1:
        return (negative_rows[:, 0] * states).sum(1, keepdim=True)
    return torch.bmm(negative_rows, states[:, :, None])[:, :, 0]
