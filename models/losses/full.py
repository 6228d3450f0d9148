"""Cross-entropy over the whole catalogue that never holds ``[tokens, items]``."""

from __future__ import annotations

import torch
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
from models.losses.seen import Seen

# Where no logit can leave [-40, 40], exponentials and the sum of 1e15 of them fit float32 and bfloat16 without
# subtracting the row's maximum first, which saves two passes over the logits (10 of 70 ms at 12,000 x 3,707).
_SAFE_LOGIT = 40.0
_ITEMS_AT_A_TIME = 8192


def full_softmax(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    seen: Seen | None = None,
    counted: Tensor | None = None,
    chunk: int | None = None,
    precision: Precision = "auto",
) -> Tensor:
    """Cross-entropy of each token's target against all items 1 .. num_items, summed over tokens.

    With ``precision="float32"`` value and gradients equal ``F.cross_entropy(states @ table[1:].T, targets - 1,
    reduction="sum")`` to 1e-5. In bfloat16 the logits and the unnormalised probabilities are rounded to 8 bits, which
    leaves up to 1e-2 of relative, unbiased noise in the gradients while logits stay under 40, and less than 1e-3 in
    the sum; the target's own logit and the log-sum-exp stay float32. Equal inputs give equal bits on a CPU at equal
    thread counts.

    Args:
        states: ``[M, D]``, only the tokens that have a target; M may be 0.
        table: ``[num_items + 1, D]``; row 0 is padding: never a candidate, its gradient is zero.
        targets: ``[M]`` int64, 1 .. num_items.
        seen: items that are no candidates of a token, each token's own history; its target always is one.
        counted: ``[M]`` bool, tokens whose values are summed; the states of the others must be zero, and so is then
            what they add to the gradient of the table. None: all.
        chunk: tokens whose logits are held at a time; None chooses by the catalogue and the device.
        precision: of the matrix products; see :func:`models.losses.gradients.compute_dtype`.

    Returns:
        Scalar sum, float32 (float64 for float64 states). It can be differentiated once.
    """
    return with_gradients(
        states, table, lambda wanted: _full_softmax(states, table, targets, seen, counted, chunk, precision, wanted)
    )


def _full_softmax(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    seen: Seen | None,
    counted: Tensor | None,
    chunk: int | None,
    precision: Precision,
    wanted: Wanted,
) -> LossAndGradients:
    dtype, wide = compute_dtype(states, precision), wide_dtype(states)
    narrow_states, candidates = states.to(dtype), table[1:].to(dtype)  # [M, D], [V, D]
    columns = targets - 1  # [M], the target's place among the candidates
    tokens, items = states.shape[0], candidates.shape[0]
    size = tokens_at_a_time(items, states.device, chunk)
    shift = not _logits_are_small(narrow_states, candidates)
    buffer = candidates.new_empty(product_rows(min(size, tokens), size), items)
    places = torch.arange(buffer.shape[0], device=states.device)
    loss = states.new_zeros((), dtype=wide)
    grad_states = torch.empty_like(states) if wanted.states else None
    grad_table = torch.zeros_like(table) if wanted.table else None
    for start in range(0, tokens, size):
        rows = slice(start, min(start + size, tokens))
        chunk_states, column = narrow_states[rows], columns[rows, None]  # [C, D], [C, 1]
        count = chunk_states.shape[0]
        product = buffer[: product_rows(count, size)]  # [C or a little more, V]
        exponentials = product[:count]  # [C, V]
        target_logit = _target_logits(chunk_states, candidates, column, wide)  # [C, 1]
        torch.mm(pad_rows(chunk_states, len(product)), candidates.t(), out=product)
        if seen is not None:
            exponentials.scatter_(1, seen.columns(rows), float("-inf"))
        if shift:
            maximum = torch.maximum(exponentials.amax(1, keepdim=True), target_logit.to(dtype))
            exponentials.sub_(maximum)
            target_logit = target_logit - maximum
        exponentials.exp_()
        # The target's exponential in the sum is the unrounded one, so that the loss never falls below zero.
        others = _row_sums(exponentials, wide) - exponentials.gather(1, column).to(wide)  # [C, 1]
        total = others.clamp_(min=0) + target_logit.exp()
        loss += counted_rows(total.log() - target_logit, counted, rows).sum()
        if not wanted.any:
            continue
        # d loss / d logit = exponentials / total - one-hot: at the target, exactly minus what the others hold.
        exponentials.index_put_((places[:count], column[:, 0]), -others[:, 0].to(dtype))
        product[count:].zero_()
        if grad_states is not None:
            grad_states[rows] = torch.mm(product, candidates)[:count] / total
        if grad_table is not None:
            _add_outer(grad_table[1:], product, pad_rows((chunk_states / total).to(dtype), len(product)))
    return LossAndGradients(loss, grad_states, grad_table)


def _logits_are_small(states: Tensor, candidates: Tensor) -> bool:
    """Whether the Cauchy-Schwarz bound keeps every logit where ``exp`` is safe. A GPU would wait for the answer: no."""
    if states.device.type != "cpu" or states.shape[0] == 0:
        return False
    bound = _longest(states) * _longest(candidates)
    return bool(bound <= _SAFE_LOGIT)  # False for NaN as well


def _longest(vectors: Tensor) -> float:
    """The largest norm among ``vectors`` ``[n, D]``, taken in float32 blocks (a whole copy would be [items, D])."""
    blocks = _blocks(vectors)
    return float(torch.stack([block.float().norm(dim=1).max() for block in blocks]).max())


def _target_logits(states: Tensor, candidates: Tensor, column: Tensor, wide: torch.dtype) -> Tensor:
    """``[C, 1]``, in the wide dtype from the operands of the products."""
    return (states.to(wide) * candidates.index_select(0, column[:, 0]).to(wide)).sum(1, keepdim=True)


def _row_sums(exponentials: Tensor, wide: torch.dtype) -> Tensor:
    """``[C, 1]``, accumulated in the wide dtype."""
    return sum(  # type: ignore[return-value]
        block.sum(1, keepdim=True, dtype=wide) for block in _blocks(exponentials, dim=1)
    )


def _add_outer(gradient: Tensor, weights: Tensor, states: Tensor) -> None:
    """``gradient`` ``[V, D]`` += ``weights`` ``[C, V]`` transposed times ``states`` ``[C, D]``."""
    for block, part in zip(_blocks(gradient), _blocks(weights, dim=1), strict=True):
        block.add_(torch.mm(part.t(), states))


def _blocks(tensor: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of 8,192 items each along ``dim``: the float32 copies that torch makes of them stay small."""
    return tensor.split(_ITEMS_AT_A_TIME, dim=dim)  # type: ignore[no-untyped-call]
