"""Which loss a run uses, as data, and the one function that applies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from models.losses.full import full_softmax
from models.losses.gradients import PRECISIONS, Precision
from models.losses.sampled import bpr, sampled_softmax
from models.losses.samplers import PopularitySampler, uniform_negatives

LossName = Literal["softmax", "sampled_softmax", "bpr"]
SamplerName = Literal["uniform", "popularity"]
_DEFAULT_NEGATIVES: dict[str, int] = {"sampled_softmax": 1024, "bpr": 1}


@dataclass(frozen=True)
class LossOptions:
    """The training loss of a retrieval model."""

    name: LossName = "softmax"
    """``softmax``: cross-entropy over the whole catalogue. ``sampled_softmax``: against negatives shared by the step,
    for catalogues of more than about 100,000 items. ``bpr``: each target against negatives of its own."""
    num_negatives: int | None = None
    """Negatives a step (sampled_softmax) or a token (bpr); null takes 1024 and 1. Not used by softmax."""
    sampler: SamplerName = "uniform"
    """``uniform``, or ``popularity``: in proportion to training counts; sampled_softmax then corrects its logits by the
    log probability of the draw."""
    precision: Precision = "auto"
    """Of the matrix products: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the machine multiplies it in
    hardware. Not used by bpr."""
    chunk: int | None = None
    """Tokens whose logits are held at a time; null chooses by the catalogue and the device."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        _check_choice("name", self.name, get_args(LossName))
        _check_choice("sampler", self.sampler, get_args(SamplerName))
        _check_choice("precision", self.precision, PRECISIONS)
        for field in ("num_negatives", "chunk"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} must be at least 1, not {value}")


def compute_loss(
    options: LossOptions,
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    generator: torch.Generator,
    popularity: PopularitySampler | None = None,
) -> Tensor:
    """The loss of the tokens that have a target, summed.

    Args:
        options: which loss.
        states: ``[M, D]``.
        table: ``[num_items + 1, D]``, row 0 padding.
        targets: ``[M]`` int64, 1 .. num_items.
        generator: of the negatives; "softmax" draws nothing from it.
        popularity: needed where ``options.sampler`` is "popularity".

    Returns:
        Scalar sum, to be divided by the number of tokens; differentiable once.

    Raises:
        ValueError: popularity sampling asked for without the sampler.
    """
    if options.name == "softmax":
        return full_softmax(states, table, targets, chunk=options.chunk, precision=options.precision)
    if options.sampler == "popularity" and popularity is None:
        raise ValueError("sampler 'popularity' needs the training counts")
    sampler = popularity if options.sampler == "popularity" else None
    wanted = options.num_negatives or _DEFAULT_NEGATIVES[options.name]
    shape = (targets.numel(), wanted) if options.name == "bpr" else (wanted,)
    negatives = (
        uniform_negatives(table.shape[0] - 1, shape, generator, states.device)
        if sampler is None
        else sampler.sample(shape, generator, states.device)
    )
    if options.name == "bpr":
        return bpr(states, table, targets, negatives, chunk=options.chunk)
    return sampled_softmax(
        states,
        table,
        targets,
        negatives,
        log_q=None if sampler is None else sampler.log_probability(negatives),
        target_log_q=None if sampler is None else sampler.log_probability(targets),
        chunk=options.chunk,
        precision=options.precision,
    )


def _check_choice(field: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{field} must be one of {', '.join(valid)}, not {value!r}")
