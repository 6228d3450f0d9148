"""Losses against sampled negatives: memory that does not grow with the catalogue."""

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


def sampled_softmax(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    log_q: Tensor | None = None,
    target_log_q: Tensor | None = None,
    counted: Tensor | None = None,
    chunk: int | None = None,
    precision: Precision = "auto",
) -> Tensor:
    """Cross-entropy of each target against itself and K negatives shared by all tokens, summed over tokens.

    A negative that happens to be a token's target is left out for that token. With ``log_q`` the logits of target and
    negatives are lowered by the log probability of being drawn (Jean et al. 2015, arXiv 1412.2007), which makes the
    expected gradient that of the full softmax as K grows; constants cancel, so ``log(K q)`` and ``log q`` are equal.
    Apart from the dense table gradient the memory is ``chunk x K`` and ``K x D``, whatever the catalogue.

    Args:
        states: ``[M, D]``; M may be 0.
        table: ``[num_items + 1, D]``; only the rows named are read, row 0 gets zero gradient.
        targets: ``[M]`` int64, 1 .. num_items.
        negatives: ``[K]`` int64, 1 .. num_items, repeats allowed, K at least 1.
        log_q: ``[K]``, log probability of drawing each negative; comes with ``target_log_q`` or not at all.
        target_log_q: ``[M]``, the same of each target.
        counted: ``[M]`` bool, tokens whose values are summed; the states of the others must be zero, and so is then
            what they add to the gradient of the table. None: all.
        chunk: tokens whose logits are held at a time.
        precision: of the matrix products; logits, softmax and sums are float32.

    Returns:
        Scalar sum, float32 (float64 for float64 states). It can be differentiated once.

    Raises:
        ValueError: no negatives, or one of the two corrections without the other.
    """
    if negatives.numel() == 0:
        raise ValueError("sampled softmax needs at least one negative")
    if (log_q is None) != (target_log_q is None):
        raise ValueError("log_q and target_log_q come together: correcting one side alone changes the loss")
    correction = None if log_q is None or target_log_q is None else (log_q, target_log_q)

    def compute(wanted: Wanted) -> LossAndGradients:
        return _sampled_softmax(states, table, targets, negatives, correction, counted, chunk, precision, wanted)

    return with_gradients(states, table, compute)


def _sampled_softmax(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    correction: tuple[Tensor, Tensor] | None,
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
        target_rows = table.index_select(0, chunk_targets).to(dtype).to(wide)  # [C, D]
        target_logit = (chunk_states.to(wide) * target_rows).sum(1, keepdim=True)  # [C, 1]
        count, padded = len(chunk_states), product_rows(len(chunk_states), size)
        logits = torch.mm(pad_rows(chunk_states, padded), negative_rows.t())[:count].to(wide)  # [C, K]
        if correction is not None:
            logits = logits.sub_(correction[0])
            target_logit = target_logit - correction[1][rows, None]
        logits.masked_fill_(chunk_targets[:, None] == negatives, float("-inf"))
        maximum = torch.maximum(logits.amax(1, keepdim=True), target_logit)
        exponentials = logits.sub_(maximum).exp_()
        others = exponentials.sum(1, keepdim=True)  # [C, 1]
        total = others + (target_logit - maximum).exp()
        loss += counted_rows(total.log() + maximum - target_logit, counted, rows).sum()
        if not wanted.any:
            continue
        weights, target_weight = exponentials.div_(total).to(dtype), -others / total  # d loss / d logits
        weights = pad_rows(weights, padded)
        if grad_states is not None:
            grad_states[rows] = torch.mm(weights, negative_rows)[:count] + target_weight * target_rows
        if grad_table is not None and grad_negatives is not None:
            grad_negatives += torch.mm(weights.t(), pad_rows(chunk_states, padded))
            grad_table.index_add_(0, chunk_targets, (target_weight * chunk_states).to(table.dtype))
    if grad_table is not None and grad_negatives is not None:
        grad_table.index_add_(0, negatives, grad_negatives.to(table.dtype))
    return LossAndGradients(loss, grad_states, grad_table)


def bpr(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    counted: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Bayesian personalised ranking: ``-log sigmoid(score(target) - score(negative))``, summed over tokens.

    With several negatives a token counts the mean over those that are not its target; if all are, it counts nothing.
    Everything is float32: the time goes into fetching rows, not into products.

    Args:
        states: ``[M, D]``; M may be 0.
        table: ``[num_items + 1, D]``; only the rows named are read, row 0 gets zero gradient.
        targets: ``[M]`` int64, 1 .. num_items.
        negatives: ``[M]`` or ``[M, k]`` int64, 1 .. num_items, each token's own.
        counted: ``[M]`` bool, tokens whose values are summed; the states of the others must be zero, and so is then
            what they add to the gradient of the table. None: all.
        chunk: tokens whose negatives' rows ``[chunk, k, D]`` are held at a time.

    Returns:
        Scalar sum, float32 (float64 for float64 states). It can be differentiated once.

    Raises:
        ValueError: negatives of another shape.

    Source:
        Rendle et al. 2009, arXiv 1205.2618.
    """
    if negatives.shape[:1] != targets.shape or negatives.ndim > 2:
        raise ValueError(f"negatives must be [M] or [M, k] with M = {targets.numel()}, not {list(negatives.shape)}")
    negatives = negatives.reshape(targets.numel(), negatives.shape[1] if negatives.ndim == 2 else 1)
    return with_gradients(states, table, lambda wanted: _bpr(states, table, targets, negatives, counted, chunk, wanted))


def _bpr(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
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
        margin = target_score - torch.bmm(negative_rows, chunk_states[:, :, None])[:, :, 0]  # [C, k]
        valid = chunk_negatives != chunk_targets[:, None]
        share = valid.to(wide) / valid.sum(1, keepdim=True).clamp_(min=1)  # [C, k]
        loss += counted_rows(F.softplus(-margin) * share, counted, rows).sum()
        if not wanted.any:
            continue
        slope = torch.sigmoid(-margin) * share  # [C, k], minus d loss / d margin
        slope_sum = slope.sum(1, keepdim=True)
        if grad_states is not None:
            pull = torch.bmm(slope[:, None, :], negative_rows)[:, 0]  # [C, D]
            grad_states[rows] = (pull - slope_sum * target_rows).to(states.dtype)
        if grad_table is not None:
            push = (slope[:, :, None] * chunk_states[:, None, :]).view(-1, dim).to(table.dtype)  # [C * k, D]
            grad_table.index_add_(0, chunk_negatives.flatten(), push)
            grad_table.index_add_(0, chunk_targets, (-slope_sum * chunk_states).to(table.dtype))
    return LossAndGradients(loss, grad_states, grad_table)
