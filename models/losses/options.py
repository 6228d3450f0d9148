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
ALL_OF_STEP = -1
"""As a number of negatives: every item that is a target of the step."""
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
    """Negatives of a token; null takes 1024 (sampled_softmax), 1 (bce, bpr) or 256 (gbce). -1 (sampled_softmax with
    ``sampler: in_batch``): every item that is a target of the step, once each. Not used by softmax."""
    sampler: SamplerName = "uniform"
    """``uniform``; ``popularity``: in proportion to training counts; or ``in_batch``: from the step's own targets. With
    the latter two sampled_softmax corrects its logits by the log probability of the draw, unless it takes all of the
    step's items, which are not drawn. gbce takes uniform alone: its calibration is derived for it."""
    share_negatives: bool = False
    """bce and gbce: one set of negatives for all tokens of a step, which costs one matrix product, instead of a set a
    token. sampled_softmax always shares, bpr never does."""
    calibration: float = 0.75
    """gbce's t, 0 to 1: 0 is bce, 1 gives probabilities that are not inflated by sampling."""
    exclude_seen: bool = False
    """softmax: what a user has seen in the row, at most ``loader.max_length`` events, is no candidate, as where
    evaluation masks it (there the whole history); the model then spends nothing on telling seen items from unseen ones.
    For data in which users do not come back to an item."""
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
            if value is not None and value < 1 and not (field == "num_negatives" and value == ALL_OF_STEP):
                raise ValueError(f"{field} must be at least 1, not {value}")
        if self.takes_all_of_step and (self.name, self.sampler) != ("sampled_softmax", "in_batch"):
            raise ValueError(
                f"num_negatives must be a number with {self.name} and the sampler {self.sampler}: all items of the "
                "step (-1) are for sampled_softmax with the sampler in_batch"
            )
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
    def takes_all_of_step(self) -> bool:
        """Whether every item that is a target of the step is a negative of all the others."""
        return self.num_negatives == ALL_OF_STEP

    @property
    def shares(self) -> bool:
        """Whether one set of negatives serves all tokens of a step."""
        return self.name == "sampled_softmax" or self.share_negatives


@dataclass(frozen=True)
class Drawn:
    """The negatives of a step.

    Attributes:
        negatives: ``[K]`` for all tokens or ``[M, k]``, each token's own: rows of the table that the loss is given.
        num_items: items that they were drawn from, the whole catalogue.
        log_q: ``[K]``, log probability of each draw; None where the loss does not correct for it.
        target_log_q: ``[M]``, the same of the targets.
    """

    negatives: Tensor
    num_items: int
    log_q: Tensor | None = None
    target_log_q: Tensor | None = None


def draw_negatives(
    options: LossOptions,
    num_items: int,
    targets: Tensor,
    generator: torch.Generator,
    popularity: PopularitySampler | None = None,
) -> Drawn:
    """The negatives that ``options`` asks for; for every loss but the softmax over the whole catalogue.

    Args:
        options: which loss.
        num_items: size of the catalogue.
        targets: ``[M]`` int64, 1 .. num_items.
        generator: draws on its own device.
        popularity: needed where ``options.sampler`` is "popularity", and by sampled_softmax where it is "in_batch".

    Raises:
        ValueError: popularity sampling, or a correction for it, asked for without the sampler.
    """
    if options.takes_all_of_step:  # none is drawn, so none is likelier than another; without targets any item will do
        return Drawn(torch.unique(targets) if targets.numel() else targets.new_ones(1), num_items)
    corrects = options.name == "sampled_softmax" and options.sampler != "uniform"
    if (options.sampler == "popularity" or corrects) and popularity is None:
        raise ValueError(f"sampler '{options.sampler}' needs the training counts")
    wanted = options.num_negatives or _DEFAULT_NEGATIVES[options.name]
    shape = wanted if options.shares else (targets.numel(), wanted)
    if options.sampler == "in_batch" and targets.numel():
        negatives = in_batch_negatives(targets, shape, generator)
    elif options.sampler == "popularity" and popularity is not None:
        negatives = popularity.sample(shape, generator, targets.device)
    else:
        negatives = uniform_negatives(num_items, shape, generator, targets.device)
    if not corrects or popularity is None:
        return Drawn(negatives, num_items)
    return Drawn(negatives, num_items, popularity.log_probability(negatives), popularity.log_probability(targets))


def compute_loss(
    options: LossOptions,
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    generator: torch.Generator,
    popularity: PopularitySampler | None = None,
    seen: Seen | None = None,
    drawn: Drawn | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """The loss of the tokens that have a target, summed.

    Args:
        options: which loss.
        states: ``[M, D]``.
        table: ``[num_items + 1, D]``, row 0 padding; with ``drawn`` it may be the part of it that the step needs.
        targets: ``[M]`` int64, rows of ``table`` from 1 on.
        generator: of the negatives; "softmax" draws nothing from it.
        popularity: see :func:`draw_negatives`.
        seen: the tokens' histories, needed where ``options.exclude_seen``.
        drawn: negatives drawn before, by whoever holds the whole table; None draws them here.
        counted: ``[M]`` bool, tokens whose values are summed; the states of the others must be zero. None: all.

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
        return full_softmax(
            states, table, targets, seen=excluded, counted=counted, chunk=options.chunk, precision=options.precision
        )
    drawn = drawn or draw_negatives(options, table.shape[0] - 1, targets, generator, popularity)
    return _against_drawn(options, states, table, targets, drawn, counted)


def _against_drawn(
    options: LossOptions, states: Tensor, table: Tensor, targets: Tensor, drawn: Drawn, counted: Tensor | None
) -> Tensor:
    """The loss against negatives; arguments as in :func:`compute_loss`."""
    if options.name == "bpr":
        return bpr(states, table, targets, drawn.negatives, counted=counted, chunk=options.chunk)
    if options.name in ("bce", "gbce"):
        weight = 1.0
        if options.name == "gbce":
            weight = gbce_target_weight(drawn.num_items, drawn.negatives.shape[-1], options.calibration)
        return binary_cross_entropy(
            states,
            table,
            targets,
            drawn.negatives,
            target_weight=weight,
            counted=counted,
            chunk=options.chunk,
            precision=options.precision,
        )
    return sampled_softmax(
        states,
        table,
        targets,
        drawn.negatives,
        log_q=drawn.log_q,
        target_log_q=drawn.target_log_q,
        counted=counted,
        chunk=options.chunk,
        precision=options.precision,
    )


def _check_choice(field: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{field} must be one of {', '.join(valid)}, not {value!r}")
