"""Sizes that all parts of the attention models need, and which of the kernels' paths they are counted for.

Dropout, hyper-connections and interval attention count as this machine runs them (``RECPOD_KERNELS`` included):
compiled on a CPU that has numba, else with torch. SASRec's attention on a CPU is always counted as compiled.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.kernels.paths import KernelPath, forced_path, missing, select
from models.sasrec import SASRecOptions
from pipelines.estimate.layer_work import Formats

WIDE = 4
LANES = 16  # compiled code pads to whole vectors (a test compares)
_HASHED = KernelPath("numba", "packed_attention.cpu_dropout", "drop", ("cpu",), ("numba",))


def whole_vectors(numbers: int) -> int:
    """``numbers`` up to the next multiple of a vector."""
    return -(-numbers // LANES) * LANES


def is_compiled(op: str, device: str) -> bool:
    """Whether ``op`` of models/kernels runs compiled by numba on ``device``."""
    return device == "cpu" and select(op, device).name == "numba"


def mask_bytes(device: str, number: int) -> int:
    """What dropout keeps for each number of ``number`` bytes: see models/layers/dropout.py (a test compares).

    A GPU keeps a bool; a CPU's hash nothing, of float32 alone; without it the mask is kept in the input's format.
    """
    if device != "cpu":
        return 1
    hashed = forced_path("dropout", None) in (None, "numba") and missing(_HASHED, device) is None
    return 0 if hashed and number == WIDE else number


@dataclass(frozen=True)
class Sizes:
    """Sizes and bytes that all parts need.

    Attributes:
        d: width.
        inner: of the feed-forward layer.
        heads: of attention.
        n: streams, 1 without hyper-connections.
        narrow: bytes of a number out of a product.
        mask: bytes of a number of dropout's mask over wide numbers; 0 without dropout.
        narrow_mask: likewise over numbers out of a product.
        cpu: whether on a CPU.
        fused: whether hyper-connections are compiled.
        strips: whether interval attention is compiled.
    """

    d: int
    inner: int
    heads: int
    n: int
    narrow: int
    mask: int
    narrow_mask: int
    cpu: bool
    fused: bool
    strips: bool

    @property
    def mixed(self) -> bool:
        """Whether under autocast."""
        return self.narrow < WIDE

    @property
    def norm(self) -> int:
        """LayerNorm's input and two numbers."""
        return WIDE * (self.d + 2)

    @property
    def padded(self) -> int:
        """Width of all heads in compiled attention, each of whole vectors."""
        return self.heads * whole_vectors(self.d // self.heads)

    @property
    def routes(self) -> int:
        """Of one hyper-connection."""
        return 2 * self.n + self.n**2

    @property
    def columns(self) -> int:
        """Numbers of a stream as it is held."""
        return whole_vectors(self.d) if self.fused else self.d

    @property
    def held_routes(self) -> int:
        """Numbers of one hyper-connection's routes as they are held."""
        return whole_vectors(self.routes) if self.fused else self.routes


def sizes_of(options: SASRecOptions, formats: Formats) -> Sizes:
    """Of SASRec or TiSASRec."""
    device, drops = formats.device, options.dropout > 0
    return Sizes(
        d=options.hidden,
        inner=options.inner,
        heads=options.heads,
        n=options.mhc_expansion_rate if options.mhc else 1,
        narrow=formats.narrow,
        mask=drops * mask_bytes(device, WIDE),
        narrow_mask=drops * mask_bytes(device, formats.narrow),
        cpu=device == "cpu",
        fused=options.mhc and is_compiled("mhc_streams", device),
        strips=is_compiled("interval_attention", device),
    )
