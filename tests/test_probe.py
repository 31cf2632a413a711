"""The linear probe agrees with a plain loop, with scikit-learn, and with itself on a GPU."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from wmse import evaluation as probe
from wmse.evaluation import float32_arithmetic, train_linear


def problem(n):
    """Rows (n, 10) of which a noisy linear rule makes 4 classes, and their labels."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, 10, generator=generator)
    scores = rows @ torch.randn(10, 4, generator=generator)
    return rows, (scores + 2 * torch.randn(n, 4, generator=generator)).argmax(1)


@pytest.mark.parametrize("n", [150, 40])
def test_train_linear_is_a_plain_loop_with_autograd_and_torchs_adam(n):
    rows, labels = problem(n)
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(10, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * 10**-0.5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=0.1)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1e-4 ** (1 / 6))
    for _ in range(6):
        order = torch.randperm(n, generator=generator)
        for index in [order[:50], order[50:100], order[100:150]] if n == 150 else [order]:
            optimizer.zero_grad()
            F.cross_entropy(layer(rows[index]), labels[index]).backward()
            optimizer.step()
        decay.step()
    found = train_linear(rows, labels, epochs=6, batch_size=50, weight_decay=0.1, seed=5)
    torch.testing.assert_close(found, (layer.weight.data, layer.bias.data), atol=1e-6, rtol=1e-5)


def test_train_linear_drops_incomplete_batches(monkeypatch):
    sizes = []
    step = probe._gradient
    monkeypatch.setattr(
        probe, "_gradient", lambda layer, rows, *rest: sizes.append(len(rows)) or step(layer, rows, *rest)
    )
    train_linear(*problem(150), epochs=2, batch_size=60)
    assert sizes == [60, 60, 60, 60]


def test_train_linear_solves_logistic_regression():
    rows, labels = problem(300)
    weight, bias = train_linear(rows, labels, 1500, 300, learning_rates=(0.1, 1e-3), weight_decay=1e-2)
    # scikit-learn adds up the losses; with the bias as a column of ones, its penalty is of the bias too.
    reference = LogisticRegression(C=1 / (1e-2 * len(rows)), fit_intercept=False, tol=1e-8, max_iter=2000)
    reference.fit(np.c_[rows.double().numpy(), np.ones(len(rows))], labels.numpy())
    found = torch.cat([weight, bias[:, None]], 1).double()
    torch.testing.assert_close(found, torch.from_numpy(reference.coef_), atol=1e-3, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_captured_epoch_is_the_plain_one(monkeypatch):
    rows, labels = problem(1050)
    where = (rows.cuda(), labels.cuda())
    with float32_arithmetic("cuda"):
        captured = train_linear(*where, epochs=20, batch_size=100)
        monkeypatch.setattr(probe, "_captured", lambda epoch, device: epoch)
        plain = train_linear(*where, epochs=20, batch_size=100)
    torch.testing.assert_close(captured, plain, atol=1e-6, rtol=1e-5)
    on_cpu = train_linear(rows, labels, epochs=20, batch_size=100)
    torch.testing.assert_close([tensor.cpu() for tensor in captured], list(on_cpu), atol=1e-4, rtol=1e-3)
