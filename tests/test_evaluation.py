"""Scores agree with scikit-learn's, measures of collapse with what is known in closed form."""

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from wmse.data import load
from wmse.evaluation import (
    cca_dimensions,
    effective_rank,
    embedding_std,
    features,
    float32_arithmetic,
    knn_accuracy,
    linear_probe,
)
from wmse.networks import build_encoder


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(n=400, f=10, classes=4, offset=0.0, noise=1.0):
    """Gaussian classes: train and test rows with labels."""
    generator = seeded()
    centres = torch.randn(classes, f, generator=generator)
    parts = []
    for _ in range(2):
        labels = torch.randint(0, classes, (n,), generator=generator)
        parts += [centres[labels] + noise * torch.randn(n, f, generator=generator) + offset, labels]
    return parts


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_knn_is_scikit_learns(metric, offset, k):
    train, train_labels, test, test_labels = problem(offset=offset)
    neighbours = KNeighborsClassifier(k, metric=metric, algorithm="brute")
    neighbours.fit(train.double().numpy(), train_labels.numpy())
    expected = 100 * neighbours.score(test.double().numpy(), test_labels.numpy())
    # float32 cosines of nearly parallel rows may swap a neighbour or two
    allowed = 0.51 if metric == "cosine" and offset else 1e-4
    assert abs(knn_accuracy(train, train_labels, test, test_labels, k, metric) - expected) <= allowed


def test_knn_ties_go_to_the_smallest_class():
    train = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0]])
    labels = torch.tensor([2, 1, 1, 2, 0])
    query = torch.tensor([[0.15]])
    assert knn_accuracy(train, labels, query, torch.tensor([1]), k=4) == 100


def test_knn_refuses_what_it_cannot_do():
    rows, labels = torch.randn(3, 2), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match="5.*3"):
        knn_accuracy(rows, labels, rows, labels)
    with pytest.raises(ValueError, match="manhattan.*euclidean.*cosine"):
        knn_accuracy(rows, labels, rows, labels, k=1, metric="manhattan")


def test_linear_probe_is_near_logistic_regression_and_seeded():
    train, train_labels, test, test_labels = problem(n=600, noise=0.9)
    score = linear_probe(train, train_labels, test, test_labels, batch_size=100)
    expected = LogisticRegression(max_iter=2000).fit(train.numpy(), train_labels.numpy())
    assert abs(score - 100 * expected.score(test.numpy(), test_labels.numpy())) <= 2
    assert score == linear_probe(train, train_labels, test, test_labels, batch_size=100)


def test_linear_probe_drops_incomplete_batches():
    train, train_labels, test, test_labels = problem(n=150, noise=0.5)
    calls = []
    original = torch.nn.functional.cross_entropy

    def spy(logits, labels):
        calls.append(len(labels))
        return original(logits, labels)

    torch.nn.functional.cross_entropy = spy
    try:
        linear_probe(train, train_labels, test, test_labels, epochs=2, batch_size=100)
    finally:
        torch.nn.functional.cross_entropy = original
    assert calls == [100, 100]


def test_effective_rank_of_known_spectra():
    basis = torch.linalg.qr(torch.randn(50, 16, generator=seeded(), dtype=torch.float64)).Q
    assert effective_rank(basis) == pytest.approx(16, rel=1e-4)
    assert effective_rank(basis[:, :1] @ torch.randn(1, 16, dtype=torch.float64)) == pytest.approx(
        1, abs=1e-3
    )
    assert effective_rank(torch.ones(50, 16)) == pytest.approx(1, abs=1e-3), "uncentred: a point has rank 1"
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    entropy = float(-(shares * shares.log()).sum())
    assert effective_rank(basis[:, :3] * shares) == pytest.approx(np.exp(entropy), rel=1e-4)


def test_embedding_std_is_0_for_a_point_and_1_for_a_sphere():
    assert embedding_std(torch.ones(100, 8) * torch.rand(100, 1, generator=seeded())) == pytest.approx(
        0, abs=1e-6
    )
    assert embedding_std(torch.randn(5000, 64, generator=seeded())) == pytest.approx(1, abs=0.02)


def test_cca_dimensions_are_the_squared_canonical_correlations():
    generator = seeded()
    shared = torch.randn(400, 3, generator=generator)
    a, b = (torch.cat([shared, torch.randn(400, 2, generator=generator)], 1) for _ in range(2))
    a, b = (view @ torch.randn(5, 5, generator=generator) + 3 for view in (a, b))
    scores = CCA(5, max_iter=5000, tol=1e-12).fit_transform(a.double().numpy(), b.double().numpy())
    expected = sum(np.corrcoef(scores[0][:, i], scores[1][:, i])[0, 1] ** 2 for i in range(5))
    assert cca_dimensions(a, b) == pytest.approx(expected, abs=1e-3)
    assert 3 <= cca_dimensions(a, b) < 3.1


def test_cca_dimensions_ignore_shifts_and_linear_maps():
    generator = seeded()
    a = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    b = a + torch.randn(300, 6, generator=generator, dtype=torch.float64)
    maps = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    assert cca_dimensions(a @ maps[0] + 9, b @ maps[1] - 5) == pytest.approx(cca_dimensions(a, b), abs=1e-6)
    assert cca_dimensions(a, a) == pytest.approx(6, abs=1e-6)


def test_cca_dimensions_of_noise_and_of_a_point():
    noise = [torch.randn(4000, 16, generator=seeded(seed)) for seed in (1, 2)]
    assert cca_dimensions(*noise) == pytest.approx(16 * 16 / 4000, rel=0.5)
    assert cca_dimensions(torch.ones(100, 4), torch.randn(100, 4, generator=seeded())) == 0


def test_features_use_eval_mode_and_leave_the_encoder_as_it_was():
    images = load("digits", "test", limit=20)
    encoder = build_encoder("small").train()
    before = encoder[1].running_mean.clone()
    rows = features(encoder, images)
    assert rows.shape == (20, 256) and rows.dtype == torch.float32 and not rows.requires_grad
    assert encoder.training and torch.equal(encoder[1].running_mean, before)
    assert torch.equal(rows, features(encoder.eval(), images))


def test_evaluation_is_in_float32_whatever_is_set_outside():
    images = load("digits", "test", limit=20)
    encoder = build_encoder("small").eval()
    expected = features(encoder, images)
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(features(encoder, images), expected)
        with float32_arithmetic("cpu"):
            assert not matmul.allow_tf32
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before
