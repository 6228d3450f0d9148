"""What one token costs: FLOPs, bytes kept for the backward pass, bytes moved. One count function a model.

A model joins by one entry in ``LAYERS`` beside its entry in ``models.registry.MODELS``: a function of its options, of
the tokens that a token shares its row with (what attention is quadratic in) and of the number formats. The embedding
table, the tied output layer and the losses are the same for every retrieval model and are counted here once.

FLOPs count a multiply-add as 2. A matrix product of the layers costs its forward FLOPs three times: forward, gradient
of the input, gradient of the weight. Tests hold the counts against ``torch.utils.flop_counter`` and the bytes against
``torch.autograd.graph.saved_tensors_hooks`` on real layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from models.losses import LossOptions
from models.losses.gradients import cpu_multiplies_bfloat16, product_rows, tokens_at_a_time
from models.ss4rec import SS4RecOptions
from pipelines.config import RunConfig
from pipelines.errors import ConfigError, nearest
from pipelines.estimate.attention_layers import sasrec_layers, tisasrec_layers
from pipelines.estimate.hstu_layers import hstu_layers
from pipelines.estimate.layer_work import CountLayers, Formats, LayerWork

PASSES = 5  # over what is kept: written and read forward, read again backward, its gradient written and read
LOSS_PASSES = 6  # over a chunk of logits: written, exponentiated (2), summed, read by two products
WEIGHT_PASSES = 7  # of an update over weight, gradient and two moments: read four, write three


def ss4rec_layers(options: SS4RecOptions, shared_length: float, formats: Formats) -> LayerWork:
    """SS4Rec's blocks. ``H`` width, ``P`` states of S5, ``E`` inner width, ``N`` states and ``R`` rank of Mamba's step.

    Products forward, multiply-adds a token and layer: S5 ``2PH + 2PH``; Mamba ``2EH + E(R + 2N) + RE + EH``. Scans:
    S5 14 operations a complex state (exponential, input factor, state); Mamba 8 an inner state (step, exponential,
    state, output) and the convolution 2 a tap. Everything is linear in the length: ``shared_length`` is not used.

    Kept a token, in numbers of 4 bytes unless under autocast: of the embedding ``2H`` (dropout's mask, LayerNorm's
    input); of S5 its input ``H``, ``B u`` and the states ``2P`` each; of Mamba its input ``H``, the convolution's input
    and output, step and gate ``E`` each, ``x_proj``'s output ``R + 2N``, B and C once more ``N`` each, the sum
    before the gate (CPU only) and ``out_proj``'s input ``E`` each; the scan's states ``E N`` every ``scan_chunk``
    tokens of a row; of each norm mask and input ``2H`` and two numbers.
    """
    wide, narrow, cpu = 4, formats.narrow, formats.device == "cpu"
    h, p, e = options.hidden, options.s5_state, options.expand * options.hidden
    n, rank = options.d_state, math.ceil(options.hidden / 16)
    mixed = narrow < wide
    mask = wide if cpu else 1  # torch's dropout keeps the scaled mask as numbers on a CPU, as bools on a GPU
    norm = wide * (h + 2)
    s5 = wide * (h + 2 * p + 2 * p) + (narrow * (h + 2 * p) if mixed else 0) + mask * h + norm
    inputs = 2 * narrow * h if mixed else wide * h  # autocast casts it anew for each of the two products
    mamba = inputs + 4 * wide * e + narrow * (rank + 2 * n) + narrow * e
    mamba += 2 * wide * n if cpu or mixed else 0  # the GPU's kernel reads B and C where x_proj left them
    mamba += narrow * e if mixed else 0  # the convolution's output once more, as x_proj reads it
    mamba += wide * e if cpu else 0
    mamba += (mask if not (cpu and mixed) else narrow) * h + norm
    kept = wide * e * n  # one state of the scan
    embedding = mask * h + (norm if options.input_norm else 0) + wide  # and the interval, once for all layers
    s5_layers, mamba_layers = options.layers * options.use_s5, options.layers * options.use_mamba
    s5_parameters = 4 * p * h + 3 * p + h + 2 * h
    mamba_parameters = 2 * e * h + e * (options.d_conv + 1) + e * (rank + 2 * n) + (rank + 1) * e + e * n + e + e * h
    backward, backward_row, backward_fixed = _backward(options, formats, mamba_layers > 0)
    return LayerWork(
        parameters=2 * h * options.input_norm + s5_layers * s5_parameters + mamba_layers * (mamba_parameters + 2 * h),
        product_flops=2.0 * s5_layers * 4 * p * h
        + 2.0 * mamba_layers * (2 * e * h + e * (rank + 2 * n) + rank * e + e * h),
        scan_flops=float(s5_layers * 14 * p + mamba_layers * (8 * e * n + 2 * e * options.d_conv)),
        saved=embedding + s5_layers * s5 + mamba_layers * (mamba + kept / formats.scan_chunk),
        saved_row=mamba_layers * kept,
        encode=wide * (1 + (2 * h + 4 * e + rank + 4 * n if mamba_layers else 4 * h + 4 * p)),
        backward=backward,
        backward_row=backward_row,
        backward_fixed=backward_fixed,
    )


def _backward(options: SS4RecOptions, formats: Formats, mamba: bool) -> tuple[float, float, float]:
    """``backward``, ``backward_row``, ``backward_fixed``: the last layer's is the widest point, all before it is kept.

    Mamba: gradients of the scan's output, x, step and gate ``E`` each, of B and C ``N`` each, of the residual ``H``;
    gone by then are the norm's input, mask and statistics and ``out_proj``'s input. The CPU's scan adds up the
    gradients of its parameters in 64 groups, the GPU's in one a row, and B's and C's in one a block of channels.
    """
    wide, cpu = 4, formats.device == "cpu"
    h, e, n, p = options.hidden, options.expand * options.hidden, options.d_state, options.s5_state
    mask = wide if cpu else 1
    if not mamba:
        gone = (mask + wide) * h + 2 * wide
        return wide * (h + 4 * p) - gone, 0.0, 0.0
    gone = (mask + wide) * h + 2 * wide + formats.narrow * e
    parameters = float(wide * e * (n + 2))
    if cpu:
        grown = wide * (4 * e + 2 * n + h)
        return grown - gone, 0.0, 64 * parameters
    blocks = -(-e * n // 512)  # (state, channel) pairs of a program of the Triton kernel
    grown = wide * (4 * e + 2 * n * blocks + h)
    return grown - gone, parameters, 0.0


LAYERS: dict[str, CountLayers] = {
    "hstu": hstu_layers,
    "ss4rec": ss4rec_layers,
    "sasrec": sasrec_layers,
    "tisasrec": tisasrec_layers,
}


@dataclass(frozen=True)
class Work:
    """What a run's model costs on a device.

    Attributes:
        parameters: all of them.
        items: in the catalogue.
        hidden: width of item vectors.
        layers: of a token, the loss apart.
        loss: the loss' options.
        formats: number formats.
        step_targets: of a step, on average; None where nobody has counted. A loss whose negatives are the items of the
            step takes it for their number, which is no smaller.
    """

    parameters: int
    items: int
    hidden: int
    layers: LayerWork
    loss: LossOptions
    formats: Formats
    step_targets: float | None = None

    @property
    def layer_flops(self) -> float:
        """Of a target in training: products and scans, forward and twice that backward, and attention."""
        return 3.0 * (self.layers.product_flops + self.layers.scan_flops) + self.layers.attention_flops

    @property
    def loss_flops(self) -> float:
        """Matrix products of a target's loss, ``2 D K`` each: logits, gradient of the state, gradient of the table.

        The last is no product where every token has negatives of its own: their rows are added up one by one.
        """
        return (6.0 if self.shared_candidates else 4.0) * self.hidden * self.candidates

    @property
    def flops(self) -> float:
        """Of a target in training."""
        return self.layer_flops + self.loss_flops

    @property
    def shared_candidates(self) -> bool:
        """Whether all tokens of a step are scored against the same items."""
        return self.loss.name == "softmax" or self.loss.shares

    @property
    def candidates(self) -> int:
        """Items that each target is scored against."""
        if self.loss.takes_all_of_step:
            return min(self.items, math.ceil(self.step_targets or self.items))
        return self.items if self.loss.name == "softmax" else negatives(self.loss)

    def moved(self, targets_a_step: float) -> float:
        """Bytes of a target in training that pass through memory, with its share of the update of all weights."""
        logits = LOSS_PASSES * self.formats.loss * self.candidates
        return (
            PASSES * self.layers.saved
            + self.layers.streamed
            + logits
            + WEIGHT_PASSES * 4.0 * self.parameters / targets_a_step
        )


def negatives(loss: LossOptions) -> int:
    """Negatives of a step or of a token that are drawn; the defaults are the losses' own (a test compares)."""
    return loss.num_negatives or {"sampled_softmax": 1024, "bce": 1, "gbce": 256, "bpr": 1}[loss.name]


def formats_of(config: RunConfig, device: str) -> Formats:
    """What ``training.precision`` and ``model.loss.precision`` come to on ``device`` (``cpu`` or ``cuda``).

    A ranking model's loss has no products of its own: its format is that of the layers.
    """
    precision = config.training.precision
    mixed = precision == "bfloat16" or (precision == "auto" and device == "cuda")
    if config.ranks:
        return Formats(device, 2 if mixed else 4, 2 if mixed else 4)
    loss = config.model_options().loss.precision
    automatic = mixed if device == "cuda" else cpu_multiplies_bfloat16()
    narrow = automatic if loss == "auto" else loss == "bfloat16"
    return Formats(device, 2 if mixed else 4, 2 if narrow else 4)


def find_work(
    model: str,
    options: Any,
    items: int,
    shared_length: float,
    formats: Formats,
    step_targets: float | None = None,
) -> Work:
    """Count a retrieval model.

    Raises:
        ConfigError: nobody has written down what this model costs.
    """
    if model not in LAYERS:
        what = f"what a token of '{model}' costs is not counted yet"
        raise ConfigError(what, where="pipelines/estimate/work.py", fix=nearest(model, LAYERS))
    layers = LAYERS[model](options, shared_length, formats)
    parameters = layers.parameters + (items + 1) * options.hidden
    return Work(parameters, items, options.hidden, layers, options.loss, formats, step_targets)


@dataclass(frozen=True)
class LossMemory:
    """Bytes of a loss over ``tokens`` targets: while it computes, and what it leaves for the backward pass."""

    computing: int
    left: int


def loss_memory(work: Work, tokens: int) -> LossMemory:
    """What models/losses allocates: gradients of states and table, and one chunk of logits with its operands."""
    d, v, narrow = work.hidden, work.items, work.formats.loss
    left = 4 * tokens * d + 4 * (v + 1) * d
    device = torch.device(work.formats.device)
    if not work.shared_candidates:
        k = negatives(work.loss)
        chunk = min(tokens_at_a_time(k * d, device, work.loss.chunk), tokens)
        return LossMemory(left + 8 * tokens * k + chunk * 4 * (2 * k * d + 4 * d + 4 * k), left)
    size = tokens_at_a_time(work.candidates, device, work.loss.chunk)
    chunk = product_rows(min(size, tokens), size)
    if work.loss.name == "softmax":
        cast = narrow * (tokens * d + v * d) if narrow < 4 else 0
        block = narrow * min(v, 8192) * d  # one block of the table's gradient before it is added
        return LossMemory(left + cast + chunk * (narrow * v + 4 * 3 * d) + block, left)
    k = work.candidates
    cast = narrow * chunk * k * 2 if narrow < 4 else 0  # the product before it is widened, the weights after
    return LossMemory(left + k * d * (narrow + 8) + chunk * (5 * k + 4 * 4 * d) + cast, left)
