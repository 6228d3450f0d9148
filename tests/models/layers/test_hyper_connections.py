"""Hyper-connections: the paper's equations, doubly stochastic mixing, and gradients that reach every mapping."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.layers.hyper_connections import HyperConnection, Routes, merge_streams, split_streams
from models.layers.residual import Norm, Residual, StreamOptions


def randomised(connection: HyperConnection, seed: int = 0) -> HyperConnection:
    torch.manual_seed(seed)
    with torch.no_grad():
        connection.gate.uniform_(0.3, 0.7)
        connection.bias.normal_()
        connection.projection.normal_(std=0.1)
    return connection


def test_mixing_is_doubly_stochastic_with_random_parameters() -> None:
    connection = randomised(HyperConnection(8, 4, 20, 0.01))
    mix = connection.read(torch.randn(500, 4, 8))[1].mix
    assert mix.shape == (500, 4, 4) and (mix > 0).all()
    assert (mix.sum(1) - 1).abs().max() < 1e-5 and (mix.sum(2) - 1).abs().max() < 1e-5
    assert mix.std(0).max() > 0.01  # and differs from token to token


def test_one_sub_layer_against_the_papers_equations() -> None:
    connection = randomised(HyperConnection(3, 2, 20, 0.01)).double()
    streams = torch.randn(5, 2, 3, dtype=torch.float64)
    output = torch.randn(5, 3, dtype=torch.float64)
    read, routes = connection.read(streams)
    written = connection.write(routes, output)
    w, gate, bias = (x.detach().numpy() for x in (connection.projection, connection.gate, connection.bias))
    for t, x in enumerate(streams.numpy()):
        flat = x.reshape(-1)
        flat = flat / np.sqrt((flat**2).mean() + np.finfo(np.float64).eps)
        z = w @ flat
        pre = 1 / (1 + np.exp(-(gate[0] * z[:2] + bias[:2])))
        post = 2 / (1 + np.exp(-(gate[1] * z[2:4] + bias[2:4])))
        mix = np.exp(gate[2] * z[4:] + bias[4:]).reshape(2, 2)
        for _ in range(20):
            mix = mix / mix.sum(1, keepdims=True)
            mix = mix / mix.sum(0, keepdims=True)
        np.testing.assert_allclose(read[t].detach().numpy(), pre @ x, atol=1e-6)
        expected = mix @ x + post[:, None] * output[t].numpy()
        np.testing.assert_allclose(written[t].detach().numpy(), expected, atol=1e-6)


def gradients_of_mappings(norm: Norm | None) -> list[list[Tensor]]:
    """Of four sub-layers with random parameters: gradients of W and b for H_pre, H_post, H_res; None: F has no norm."""
    torch.manual_seed(0)
    layers = [Residual(8, norm or "pre", StreamOptions(4, 200, 0.01)).double() for _ in range(4)]
    inner = [torch.nn.Linear(8, 8).double() for _ in layers]
    x = split_streams(torch.randn(30, 8, dtype=torch.float64), 4)
    connections = [randomised(layer.connection, seed) for seed, layer in enumerate(layers) if layer.connection]
    for layer, connection, sub_layer in zip(layers, connections, inner, strict=True):
        if norm is None:
            read, routes = connection.read(x)
            x = connection.write(routes, torch.tanh(sub_layer(read)))
        else:
            x = layer(x, lambda query, _, sub_layer=sub_layer: torch.tanh(sub_layer(query)))
    (merge_streams(x) * torch.randn(30, 8, dtype=torch.float64)).sum().backward()
    found = []
    for connection in connections:
        assert connection.bias.grad is not None and connection.projection.grad is not None
        both = torch.cat([connection.bias.grad[:, None], connection.projection.grad], 1).abs()
        found.append([both[:4], both[4:8], both[8:]])
    return found


@pytest.mark.parametrize("norm", [None, "pre", "query", "post"])
def test_every_mapping_learns_but_the_first_and_last_mixing(norm: Norm | None) -> None:
    """Identical streams come in, so the first mixing changes nothing; averaged ones go out, so nor does the last.

    With ``post`` a LayerNorm stands between the last mixing and the average. With ``pre`` and ``query`` one stands
    behind the first H_pre, which can only scale identical streams: it has nothing to learn either.
    """
    for place, (read, write, mix) in enumerate(gradients_of_mappings(norm)):
        last = place == 3 and norm != "post"
        for gradient, idle in (
            (read, place == 0 and norm in ("pre", "query")),
            (write, False),
            (mix, place == 0 or last),
        ):
            assert (gradient.max() < 1e-6) == idle
            if not idle:
                assert (gradient.amax(1) > 1e-3).all()  # every entry of the mapping


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_without_gates_it_starts_as_a_residual_network(norm: Norm) -> None:
    """H_pre sums to 1, H_post is 1, H_res keeps sums: equal streams stay equal and carry the plain residual."""
    torch.manual_seed(0)
    x, sub_layer = torch.randn(20, 8), torch.nn.Linear(8, 8)
    plain = Residual(8, norm, None)
    streams = Residual(8, norm, StreamOptions(4, 20, 0.0))
    expected = plain(plain(x, lambda query, _: sub_layer(query)), lambda query, _: sub_layer(query))
    found = split_streams(x, 4)
    for _ in range(2):
        found = streams(found, lambda query, _: sub_layer(query))
    assert torch.allclose(merge_streams(found), expected, atol=1e-5)


def test_streams_part_from_each_other_and_mixing_matters() -> None:
    connection = randomised(HyperConnection(8, 4, 20, 0.01))
    x, output = torch.randn(10, 8), torch.randn(10, 8)
    read, routes = connection.read(split_streams(x, 4))
    streams = connection.write(routes, output)
    assert (streams - streams[:, :1]).abs().max() > 0.1
    even = torch.cat([routes.read, routes.write, torch.full((10, 16), 0.25)], 1)
    again: Tensor = connection.write(Routes(streams, even), output)
    assert not torch.allclose(again, connection.write(Routes(streams, routes.mappings), output), atol=1e-3)
    assert not torch.allclose(read, x, atol=1e-2)


def test_options_reach_the_connection() -> None:
    connection = Residual(8, "pre", StreamOptions(3, 7, 0.25)).connection
    assert connection is not None
    assert (connection.streams, connection.iterations) == (3, 7)
    assert torch.equal(connection.gate.detach(), torch.full((3,), 0.25))
    assert connection.bias[0].item() == pytest.approx(-math.log(2))
