"""The Mamba block against the published recurrence, written out in numpy."""

import numpy as np
import torch

from models.layers.mamba import Mamba


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def recurrence(layer: Mamba, x: np.ndarray) -> np.ndarray:
    """One row ``[L, d_model]``, token by token."""
    w = {name: value.detach().double().numpy() for name, value in layer.state_dict().items()}
    inner, states = w["A_log"].shape
    rank = layer.dt_rank
    h, window, out = np.zeros((inner, states)), np.zeros((inner, w["conv1d.weight"].shape[2])), []
    for token in x:
        xz = w["in_proj.weight"] @ token
        window = np.concatenate([window[:, 1:], xz[:inner, None]], axis=1)
        u = silu((window * w["conv1d.weight"][:, 0]).sum(1) + w["conv1d.bias"])
        projected = w["x_proj.weight"] @ u
        step, b, c = projected[:rank], projected[rank : rank + states], projected[rank + states :]
        delta = np.log1p(np.exp(w["dt_proj.weight"] @ step + w["dt_proj.bias"]))
        h = np.exp(delta[:, None] * -np.exp(w["A_log"])) * h + (delta * u)[:, None] * b[None]
        out.append(w["out_proj.weight"] @ ((h @ c + w["D"] * u) * silu(xz[inner:])))
    return np.stack(out)


def test_forward_equals_the_recurrence_in_every_row() -> None:
    torch.manual_seed(5)
    layer, x, offsets = Mamba(8, d_state=4), torch.randn(12, 8), torch.tensor([0, 1, 8, 12])
    got = layer(x, offsets).detach().numpy()
    for first, end in ((0, 1), (1, 8), (8, 12)):
        assert np.allclose(got[first:end], recurrence(layer, x[first:end].double().numpy()), atol=1e-4)


def test_parameters_have_the_names_and_shapes_of_mamba_ssm() -> None:
    shapes = {name: tuple(value.shape) for name, value in Mamba(64, d_state=32).state_dict().items()}
    assert shapes == {
        "A_log": (128, 32),
        "D": (128,),
        "in_proj.weight": (256, 64),
        "conv1d.weight": (128, 1, 4),
        "conv1d.bias": (128,),
        "x_proj.weight": (68, 128),
        "dt_proj.weight": (128, 4),
        "dt_proj.bias": (128,),
        "out_proj.weight": (64, 128),
    }


def test_initial_steps_lie_between_dt_min_and_dt_max() -> None:
    steps = torch.nn.functional.softplus(Mamba(64, dt_min=0.001, dt_max=0.1).dt_proj.bias)
    assert 0.0009 < steps.min() < 0.01 < steps.max() < 0.101
