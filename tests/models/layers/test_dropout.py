"""Compiled dropout drops the places that its hash names, for every size, on any number of threads."""

from __future__ import annotations

import pytest
import torch

from models.kernels.packed_attention import dropout as hashes
from models.layers.dropout import Dropout

pytest.importorskip("numba")
from models.kernels.packed_attention.cpu_dropout import BLOCK, drop
from models.kernels.simd import LANES


def survives(count: int, seed: int, share: float) -> torch.Tensor:
    """By the hash in plain PyTorch: the lane of a block is the query, the vector of the block the key."""
    places = torch.arange(count)
    query, key = places // BLOCK * LANES + places % LANES, places % BLOCK // LANES
    own = hashes._mix((hashes._mix((query & 0xFFFFFFFF) ^ (seed & 0xFFFFFFFF)) + (seed >> 32)) & 0xFFFFFFFF)
    return hashes._mix((own + key * hashes.STEP) & 0xFFFFFFFF) >= hashes.threshold(share)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 4096, 4097, 3 * 4096 + 21])
def test_every_place_has_the_hash_of_its_number(count: int) -> None:
    x = torch.randn(count)
    found = drop(x, 123456789012345, 0.3)
    torch.testing.assert_close(found, x * survives(count, 123456789012345, 0.3) / 0.7)


def test_threads_change_nothing() -> None:
    x, threads = torch.randn(100_001), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = drop(x, 5, 0.5)
        torch.set_num_threads(3)
        assert torch.equal(drop(x, 5, 0.5), one)
    finally:
        torch.set_num_threads(threads)


def test_the_way_without_numba_can_be_forced_and_gradients_follow_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(64, 33).T.requires_grad_()  # not contiguous
    compiled = Dropout(0.4)(x)
    (grad,) = torch.autograd.grad(compiled.sum(), x)
    assert type(compiled.grad_fn).__name__ == "_HashedDropoutBackward"
    torch.testing.assert_close(grad, compiled.detach())
    monkeypatch.setenv("RECPOD_KERNELS", "dropout=torch")
    assert type(Dropout(0.4)(x).grad_fn).__name__ == "_DropoutBackward"
    assert type(Dropout(0.4)(x.double()).grad_fn).__name__ == "_DropoutBackward"
