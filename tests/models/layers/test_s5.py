"""S5 against its equations written out with complex numbers."""

import numpy as np
import torch

from models.layers.s5 import S5, hippo_legs_eigen


def test_hippo_normal_part_is_diagonalised() -> None:
    size = 8
    n = np.arange(size)
    hippo = -np.array(
        [[0.0 if k > i else i + 1 if i == k else np.sqrt((2 * i + 1) * (2 * k + 1)) for k in n] for i in n]
    )
    p = np.sqrt(n + 0.5)
    values, vectors = hippo_legs_eigen(size)
    assert np.allclose(vectors @ np.diag(values) @ vectors.conj().T, hippo + np.outer(p, p))
    assert np.allclose(values.real, -0.5)


def test_forward_equals_the_recurrence() -> None:
    torch.manual_seed(3)
    layer, offsets = S5(6, 4), torch.tensor([0, 5, 6, 9])
    u, interval = torch.randn(9, 6), torch.tensor([0.5, 0.0, 3.0, 1.0, 0.25, 2.0, 1.0, 1e-3, 40.0])
    lam = (-layer.log_decay.exp() + 1j * layer.frequency).detach().numpy().astype(np.complex128)
    b = (layer.b[:4] + 1j * layer.b[4:]).detach().numpy().astype(np.complex128)
    c = (layer.c[:, :4] + 1j * layer.c[:, 4:]).detach().numpy().astype(np.complex128)
    step_scale = layer.log_step.exp().detach().numpy()
    expected = np.zeros((9, 6))
    for first, end in ((0, 5), (5, 6), (6, 9)):
        x = np.zeros(4, dtype=np.complex128)
        for i in range(first, end):
            a = np.exp(lam * interval[i].item() * step_scale)
            x = a * x + (a - 1) / lam * (b @ u[i].numpy())
            expected[i] = (c @ x).real + layer.d.detach().numpy() * u[i].numpy()
    assert np.allclose(layer(u, interval, offsets).detach().numpy(), expected, atol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    layer = S5(6, 4)
    layer(torch.randn(7, 6), torch.rand(7), torch.tensor([0, 3, 7])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
