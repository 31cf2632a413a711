"""Measures of spectra, collapse, alignment and uniformity agree with what is known in closed form."""

import numpy as np
import pytest
import torch
from scipy.special import hyp0f1
from sklearn.cross_decomposition import CCA

from wmse import metrics
from wmse.losses import w_mse_loss
from wmse.metrics import (
    UNIFORMITY_ROWS,
    alignment,
    cca_dimensions,
    effective_rank,
    eigenvalues,
    embedding_std,
    spectra,
    uniformity,
    whitened,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def collapsed(n=200, k=8):
    """A point, but for the rounding of float32."""
    point = normal(1, k, dtype=torch.float32)
    return point + 1e-8 * normal(n, k, seed=1, dtype=torch.float32)


def test_eigenvalues_of_a_known_covariance():
    variances = torch.tensor([9.0, 4.0, 1.0, 0.25], dtype=torch.float64)
    turn = torch.linalg.qr(normal(4, 4)).Q
    centred = normal(100, 4) - normal(100, 4).mean(0)
    white = np.sqrt(99) * torch.linalg.qr(centred).Q
    x = (white * variances.sqrt()) @ turn.T + 7
    torch.testing.assert_close(eigenvalues(x), variances, rtol=1e-10, atol=0)
    values = eigenvalues(x.float())
    assert values.dtype == torch.float64 and values.shape == (4,)
    assert torch.equal(values, values.sort(descending=True).values)
    assert (eigenvalues(torch.ones(10, 3)) == 0).all()


def test_effective_rank_of_known_spectra():
    basis = torch.linalg.qr(normal(50, 16)).Q
    assert effective_rank(basis) == pytest.approx(16, rel=1e-4)
    assert effective_rank(basis[:, :1] @ normal(1, 16)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(50, 16)) == pytest.approx(1, abs=1e-3), "uncentred: a point has rank 1"
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    entropy = float(-(shares * shares.log()).sum())
    assert effective_rank(basis[:, :3] * shares) == pytest.approx(np.exp(entropy), rel=1e-4)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
@pytest.mark.parametrize("condition", [0.0, 6.0])
def test_effective_rank_is_that_of_the_singular_values(shape, condition):
    x = normal(*shape) * torch.logspace(0, -condition, shape[1], dtype=torch.float64) + 1
    values = torch.linalg.svdvals(x)
    shares = values / values.sum() + 1e-7
    assert effective_rank(x) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-6)


def test_embedding_std_is_0_for_a_point_and_1_for_a_sphere():
    point = torch.ones(100, 8) * torch.rand(100, 1, generator=seeded())
    assert embedding_std(point) == pytest.approx(0, abs=1e-6)
    assert embedding_std(normal(5000, 64)) == pytest.approx(1, abs=0.02)


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
    a = normal(300, 6)
    b = a + normal(300, 6, seed=1)
    maps = normal(2, 6, 6, seed=2)
    assert cca_dimensions(a @ maps[0] + 9, b @ maps[1] - 5) == pytest.approx(cca_dimensions(a, b), abs=1e-6)
    assert cca_dimensions(a, a) == pytest.approx(6, abs=1e-6)


def test_cca_dimensions_leave_out_directions_of_rounding():
    a, b = (normal(300, 3, seed=seed) @ normal(3, 6, seed=2) for seed in (0, 1))
    assert cca_dimensions(a.float(), a.float()) == pytest.approx(3, abs=1e-6)
    assert cca_dimensions(a, b) < 0.3


def test_cca_dimensions_of_noise_and_of_a_point():
    noise = [normal(4000, 16, seed=seed) for seed in (1, 2)]
    assert cca_dimensions(*noise) == pytest.approx(16 * 16 / 4000, rel=0.5)
    assert cca_dimensions(torch.ones(100, 4), normal(100, 4)) == 0


def test_alignment_is_the_squared_distance_of_directions():
    a, b = normal(50, 6), normal(50, 6, seed=1)
    assert alignment(a, a) == 0
    assert alignment(a, 3 * a) == pytest.approx(0, abs=1e-12), "lengths do not count"
    assert alignment(a, -a) == pytest.approx(4)
    cosines = torch.cosine_similarity(a, b)
    assert alignment(a, b) == pytest.approx(float((2 - 2 * cosines).mean()))
    assert alignment(normal(5000, 64), normal(5000, 64, seed=1)) == pytest.approx(2, abs=0.02)


def test_uniformity_of_a_point_and_of_two_opposite_ones():
    assert uniformity(torch.ones(40, 5)) == pytest.approx(0, abs=1e-12)
    # two of six ordered pairs are alike, the other four are 2 apart
    opposite = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(np.log((2 + 4 * np.exp(-8)) / 6))


@pytest.mark.parametrize("k", [2, 3, 32])
def test_uniformity_of_a_sphere(k):
    # The mean of exp(4u) over the sphere, u a coordinate, is 0F1(; k / 2; 4); |a - b|^2 = 2 - 2u.
    expected = -4 + np.log(hyp0f1(k / 2, 4.0))
    assert uniformity(normal(UNIFORMITY_ROWS, k)) == pytest.approx(expected, abs=0.03)


def test_uniformity_samples_rows_by_its_seed():
    x = normal(UNIFORMITY_ROWS + 500, 4) + 0.5
    assert uniformity(x, seed=1) == uniformity(x, seed=1) != uniformity(x, seed=2)
    assert uniformity(x, seed=1) == pytest.approx(uniformity(x, seed=2), abs=0.05)
    with pytest.raises(ValueError, match="2 rows.*got 1"):
        uniformity(x[:1])


def test_whitened_rows_have_rank_k_and_unit_eigenvalues():
    x = (normal(300, 8) @ normal(8, 8, seed=1) + 5).float()
    white = whitened(x)
    assert white.dtype == torch.float32 and white.shape == x.shape
    torch.testing.assert_close(eigenvalues(white), torch.ones(8, dtype=torch.float64), rtol=1e-5, atol=0)
    assert effective_rank(white) == pytest.approx(8, rel=1e-4)


def test_alignment_of_whitened_views_is_the_loss_of_one_slice():
    a = normal(256, 8, dtype=torch.float32)
    b = a + normal(256, 8, seed=1, dtype=torch.float32)
    loss = w_mse_loss(torch.stack([a, b]), 256, generator=seeded())
    assert alignment(whitened(a), whitened(b)) == pytest.approx(float(loss), rel=1e-5)


def test_nothing_is_whitened_where_that_says_nothing():
    assert whitened(collapsed()) is None
    assert whitened(torch.ones(200, 8)) is None
    repeated = normal(200, 4, dtype=torch.float32).repeat(1, 2)
    assert whitened(repeated) is None
    assert whitened(normal(15, 8)) is None and whitened(normal(16, 8)) is not None, "n >= 2k"
    with pytest.raises(ValueError, match="NaN"):
        whitened(torch.full((20, 2), float("nan")))


def test_spectra_are_plain_numbers_for_a_record():
    features, embeddings = normal(100, 12, dtype=torch.float32), normal(100, 5, dtype=torch.float32)
    found = spectra(features, embeddings)
    assert list(found) == ["features", "embeddings", "whitened"]
    assert [len(values) for values in found.values()] == [12, 5, 5]
    assert all(type(value) is float for values in found.values() for value in values)
    assert found["features"] == pytest.approx(eigenvalues(features).tolist(), rel=1e-4)
    assert found["whitened"] == pytest.approx([1.0] * 5, rel=1e-4)
    assert len(str(found["features"][0])) <= 8
    assert spectra(features, collapsed(100))["whitened"] is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_measures_name_the_row_that_is_not_a_number(bad):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    spoiled = x.clone()
    spoiled[5, 2] = bad
    for measure in (metrics.eigenvalues, metrics.effective_rank, metrics.embedding_std, metrics.uniformity):
        with pytest.raises(ValueError, match="row 5 holds NaN or infinity"):
            measure(spoiled)
    with pytest.raises(ValueError, match="row 5 holds NaN or infinity"):
        metrics.whitened(spoiled)
    for compare in (metrics.cca_dimensions, metrics.alignment):
        with pytest.raises(ValueError, match="the second view: row 5 holds NaN or infinity"):
            compare(x, spoiled)
