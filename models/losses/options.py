"""Which loss a run uses, as data, and the one function that applies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from models.losses.binary import binary_cross_entropy, gbce_target_weight
from models.losses.full import full_softmax
from models.losses.gradients import PRECISIONS, Precision
from models.losses.sampled import bpr, sampled_softmax
from models.losses.samplers import PopularitySampler, in_batch_negatives, uniform_negatives
from models.losses.seen import Seen

LossName = Literal["softmax", "sampled_softmax", "bce", "gbce", "bpr"]
SamplerName = Literal["uniform", "popularity", "in_batch"]
# gBCE: 256 negatives and t = 0.75 are what its authors recommend.
_DEFAULT_NEGATIVES: dict[str, int] = {"sampled_softmax": 1024, "bce": 1, "gbce": 256, "bpr": 1}


@dataclass(frozen=True)
class LossOptions:
    """The training loss of a retrieval model."""

    name: LossName = "softmax"
    """``softmax``: cross-entropy over the whole catalogue. ``sampled_softmax``: against negatives shared by the step,
    for catalogues of more than about 100,000 items. ``bce``: the target against negatives, each a yes or no, as in
    SASRec. ``gbce``: the same, calibrated for how few negatives are drawn, as in gSASRec. ``bpr``: each target against
    negatives of its own."""
    num_negatives: int | None = None
    """Negatives of a token; null takes 1024 (sampled_softmax), 1 (bce, bpr) or 256 (gbce). Not used by softmax."""
    sampler: SamplerName = "uniform"
    """``uniform``; ``popularity``: in proportion to training counts; or ``in_batch``: from the step's own targets. With
    the latter two sampled_softmax corrects its logits by the log probability of the draw. gbce takes uniform alone: its
    calibration is derived for it."""
    share_negatives: bool = False
    """bce and gbce: one set of negatives for all tokens of a step, which costs one matrix product, instead of a set a
    token. sampled_softmax always shares, bpr never does."""
    calibration: float = 0.75
    """gbce's t, 0 to 1: 0 is bce, 1 gives probabilities that are not inflated by sampling."""
    exclude_seen: bool = False
    """softmax: what a user has seen is no candidate, as where evaluation masks it; the model then spends nothing on
    telling seen items from unseen ones. For data in which users do not come back to an item."""
    precision: Precision = "auto"
    """Of the matrix products: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the machine multiplies it in
    hardware. Not used where every token has negatives of its own."""
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
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"calibration must lie between 0 and 1, not {self.calibration}")
        if self.name == "gbce" and self.sampler != "uniform":
            raise ValueError(f"sampler must be uniform with gbce, not {self.sampler!r}: use bce or sampled_softmax")
        if self.exclude_seen and self.name != "softmax":
            raise ValueError(
                f"exclude_seen is for softmax, not {self.name}: its negatives are drawn for all users alike"
            )
        if self.share_negatives and self.name == "bpr":
            raise ValueError("share_negatives is not for bpr: each of its tokens has negatives of its own")

    @property
    def shares(self) -> bool:
        """Whether one set of negatives serves all tokens of a step."""
        return self.name == "sampled_softmax" or self.share_negatives


def compute_loss(
    options: LossOptions,
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    generator: torch.Generator,
    popularity: PopularitySampler | None = None,
    seen: Seen | None = None,
) -> Tensor:
    """The loss of the tokens that have a target, summed.

    Args:
        options: which loss.
        states: ``[M, D]``.
        table: ``[num_items + 1, D]``, row 0 padding.
        targets: ``[M]`` int64, 1 .. num_items.
        generator: of the negatives; "softmax" draws nothing from it.
        popularity: needed where ``options.sampler`` is "popularity", and by sampled_softmax where it is "in_batch".
        seen: the tokens' histories, needed where ``options.exclude_seen``.

    Returns:
        Scalar sum, to be divided by the number of tokens; differentiable once.

    Raises:
        ValueError: popularity sampling, or a correction for it, asked for without the sampler; seen items to be
            left out and no histories.
    """
    if options.exclude_seen and seen is None:
        raise ValueError("exclude_seen needs the tokens' histories")
    if options.name == "softmax":
        excluded = seen if options.exclude_seen else None
        return full_softmax(states, table, targets, seen=excluded, chunk=options.chunk, precision=options.precision)
    negatives = _draw(options, table.shape[0] - 1, targets, generator, popularity)
    if options.name == "bpr":
        return bpr(states, table, targets, negatives, chunk=options.chunk)
    if options.name in ("bce", "gbce"):
        weight = 1.0
        if options.name == "gbce":
            weight = gbce_target_weight(table.shape[0] - 1, negatives.shape[-1], options.calibration)
        return binary_cross_entropy(
            states,
            table,
            targets,
            negatives,
            target_weight=weight,
            chunk=options.chunk,
            precision=options.precision,
        )
    corrected = None if options.sampler == "uniform" else popularity
    return sampled_softmax(
        states,
        table,
        targets,
        negatives,
        log_q=None if corrected is None else corrected.log_probability(negatives),
        target_log_q=None if corrected is None else corrected.log_probability(targets),
        chunk=options.chunk,
        precision=options.precision,
    )


def _draw(
    options: LossOptions,
    num_items: int,
    targets: Tensor,
    generator: torch.Generator,
    popularity: PopularitySampler | None,
) -> Tensor:
    """Negatives ``[K]`` for all tokens or ``[M, k]``, drawn on the generator's device."""
    counts_needed = options.sampler == "popularity" or (
        options.sampler == "in_batch" and options.name == "sampled_softmax"
    )
    if counts_needed and popularity is None:
        raise ValueError(f"sampler '{options.sampler}' needs the training counts")
    wanted = options.num_negatives or _DEFAULT_NEGATIVES[options.name]
    shape = wanted if options.shares else (targets.numel(), wanted)
    if options.sampler == "in_batch" and targets.numel():
        return in_batch_negatives(targets, shape, generator)
    if options.sampler == "popularity" and popularity is not None:
        return popularity.sample(shape, generator, targets.device)
    return uniform_negatives(num_items, shape, generator, targets.device)


def _check_choice(field: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{field} must be one of {', '.join(valid)}, not {value!r}")
