"""The losses against plain loops over iterations, slices and pairs, in value and in every view's gradient."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.loss import plain_loop
from wmse.losses import mse_loss, standardize, w_mse_loss
from wmse.whitening import SingularCovarianceError, whiten


def embeddings(d, n, k, seed=0, dtype=torch.float32, noise=0.5):
    """d positives of n images: an image's own vector plus noise, mixed, off centre."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, k, generator=generator, dtype=torch.float64)
    views = base + noise * torch.randn(d, n, k, generator=generator, dtype=torch.float64)
    mix = torch.eye(k) + 0.3 * torch.randn(k, k, generator=generator) / k**0.5
    return (views @ mix.double() + 1).to(dtype)


def distance(a, b, normalize):
    """The distance of two (n, k) sets of vectors, averaged over them, as the paper defines it."""
    if normalize:
        return (2 - 2 * F.cosine_similarity(a, b, dim=-1)).mean()
    return ((a - b) ** 2).sum(-1).mean() / a.shape[-1]


def plain_w_mse(embeddings, slice_size, iterations, normalize, generator, detached=False):
    """The paper's loss as a triple loop: iterations, slices, pairs of views."""
    d, n, k = embeddings.shape
    terms = []
    for _ in range(iterations):
        order = torch.randperm(n, generator=generator)
        for start in range(0, n, slice_size):
            whitened = []
            for view in embeddings:
                v = view[order[start : start + slice_size]]
                v = v - v.mean(0)
                factor = torch.linalg.cholesky(v.T @ v / (slice_size - 1))
                whitened.append(torch.linalg.solve_triangular(factor, v.T, upper=False).T)
            for a, b in itertools.combinations(whitened, 2):
                terms.append(distance(a, b.detach() if detached else b, normalize))
    return sum(terms) / len(terms)


def plain_mse(embeddings, normalize):
    pairs = [distance(a, b, normalize) for a, b in itertools.combinations(embeddings, 2)]
    return sum(pairs) / len(pairs)


def value_and_gradient(loss, x):
    x = x.clone().requires_grad_()
    value = loss(x)
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient


def assert_same(ours, plain, tolerance):
    assert float((ours[0] - plain[0]).abs() / plain[0].abs()) < tolerance
    for view, (a, b) in enumerate(zip(ours[1], plain[1], strict=True)):
        assert float((a - b).norm() / b.norm()) < tolerance, f"gradient of view {view}"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- W-MSE against the triple loop ----------------------------------------------------------------

sizes = pytest.mark.parametrize("n, k, slice_size", [(128, 16, 32), (96, 16, 96), (256, 32, 64)])


@pytest.mark.parametrize("d", [2, 3, 4])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "euclidean"])
@sizes
def test_equal_to_the_triple_loop_in_value_and_in_every_views_gradient(
    d, n, k, slice_size, iterations, normalize
):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        x = embeddings(d, n, k, dtype=dtype)
        assert_same(
            value_and_gradient(
                lambda x: w_mse_loss(x, slice_size, iterations, normalize, "cholesky", seeded()), x
            ),
            value_and_gradient(lambda x: plain_w_mse(x, slice_size, iterations, normalize, seeded()), x),
            tolerance,
        )


@pytest.mark.parametrize("d", [2, 4])
def test_qr_gives_the_same_loss_and_gradients(d):
    x = embeddings(d, 128, 16, dtype=torch.float64)
    assert_same(
        value_and_gradient(lambda x: w_mse_loss(x, 32, whitening="qr", generator=seeded()), x),
        value_and_gradient(lambda x: w_mse_loss(x, 32, generator=seeded()), x),
        1e-9,
    )


def test_the_comparison_notices_a_detached_view():
    """One widespread version detaches the second view of a pair: the same value, another gradient."""
    x = embeddings(2, 128, 16)
    ours = value_and_gradient(lambda x: w_mse_loss(x, 32, generator=seeded()), x)
    detached = value_and_gradient(lambda x: plain_w_mse(x, 32, 1, True, seeded(), detached=True), x)
    torch.testing.assert_close(ours[0], detached[0])
    with pytest.raises(AssertionError, match="gradient of view"):
        assert_same(ours, detached, 1e-5)


@pytest.mark.parametrize("size", [(2, 512, 64, 128), (4, 256, 64, 128)], ids=str)
def test_equal_to_the_benchmarks_loop(size):
    d, n, k, slice_size = size
    x = embeddings(d, n, k)
    assert_same(
        value_and_gradient(lambda x: w_mse_loss(x, slice_size, generator=seeded()), x),
        value_and_gradient(lambda x: plain_loop(x, slice_size, generator=seeded()), x),
        1e-5,
    )


def test_eps_reaches_the_whitening():
    x = embeddings(2, 64, 8)
    x[:, :, 3] = 1.0
    with pytest.raises(SingularCovarianceError):
        w_mse_loss(x, 32)
    assert bool(w_mse_loss(x, 32, eps=1e-2).isfinite())


def test_gradcheck():
    x = embeddings(3, 12, 3, dtype=torch.float64).requires_grad_()
    for normalize in (True, False):
        assert torch.autograd.gradcheck(lambda x: w_mse_loss(x, 6, 2, normalize, generator=seeded()), (x,))  # noqa: B023


# --- slices and their permutation -----------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_identical_views_have_no_distance_so_all_share_one_permutation(normalize):
    """A permutation a view would pair different images, and the loss would be near 2."""
    x = embeddings(1, 128, 16, dtype=torch.float64).expand(4, -1, -1)
    assert abs(float(w_mse_loss(x, 32, 3, normalize))) < 1e-12
    shuffled = torch.stack([view[torch.randperm(128, generator=seeded(i))] for i, view in enumerate(x)])
    assert float(w_mse_loss(shuffled, 32, 3, normalize)) > 1


def test_each_iteration_has_a_permutation_of_its_own():
    x = embeddings(2, 64, 8, dtype=torch.float64)
    generator = seeded(5)
    each = [w_mse_loss(x, 16, generator=generator) for _ in range(4)]
    assert len({float(loss) for loss in each}) == 4
    torch.testing.assert_close(w_mse_loss(x, 16, 4, generator=seeded(5)), sum(each) / 4)


def test_the_generator_decides_the_slices_and_nothing_else_is_touched():
    x = embeddings(2, 64, 8)
    state = torch.get_rng_state()
    one, again, other = (w_mse_loss(x, 16, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    first = w_mse_loss(x, 16)
    torch.manual_seed(3)
    assert torch.equal(w_mse_loss(x, 16), first)


def test_one_slice_of_all_images_does_not_depend_on_the_permutation():
    x = embeddings(2, 64, 8, dtype=torch.float64)
    torch.testing.assert_close(w_mse_loss(x, 64, generator=seeded(1)), w_mse_loss(x, 64, generator=seeded(2)))


def test_every_image_gets_a_gradient():
    x = embeddings(3, 64, 8).requires_grad_()
    w_mse_loss(x, 16).backward()
    assert float(x.grad.abs().sum(-1).min()) > 0


# --- what the loss does not see -------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_invariant_to_shifts_and_upper_triangular_maps_of_each_view(normalize):
    x = embeddings(3, 96, 8, dtype=torch.float64)
    generator = seeded(1)
    moved = torch.empty_like(x)
    for view in range(3):
        upper = torch.randn(8, 8, generator=generator, dtype=torch.float64).triu()
        upper.diagonal().copy_(torch.rand(8, generator=generator) + 0.5)
        moved[view] = x[view] @ upper + 10 * torch.randn(8, generator=generator, dtype=torch.float64)
    losses = [w_mse_loss(each, 32, 2, normalize, generator=seeded()) for each in (x, moved)]
    torch.testing.assert_close(*losses, rtol=1e-8, atol=0)


def test_collapsed_embeddings_do_not_win():
    """All the same but for a little noise: no distance to plain MSE, nearly the largest to W-MSE."""
    generator = seeded()
    x = torch.randn(16, generator=generator) + 1e-3 * torch.randn(2, 128, 16, generator=generator)
    assert float(mse_loss(x)) < 1e-5
    assert 1.5 < float(w_mse_loss(x, 64)) < 2.5
    with pytest.raises(SingularCovarianceError, match=r"slice \(0, 0, 0\)"):
        w_mse_loss(x[:, :1].expand(-1, 128, -1), 64)


def test_a_singular_slice_is_named_by_view_iteration_and_slice():
    x = embeddings(3, 32, 4)
    x[2, :, 1] = 0.0
    with pytest.raises(SingularCovarianceError, match=r"slice \(2, 0, 0\) \(4 of 12 slices"):
        w_mse_loss(x, 16, iterations=2)


def test_the_order_of_the_views_does_not_matter():
    x = embeddings(4, 64, 8, dtype=torch.float64)
    torch.testing.assert_close(
        w_mse_loss(x.flip(0), 16, generator=seeded()), w_mse_loss(x, 16, generator=seeded())
    )


# --- plain MSE ------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3, 4])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "euclidean"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_mse_is_the_mean_over_pairs(d, normalize, dtype, tolerance):
    x = embeddings(d, 64, 16, dtype=dtype)
    assert_same(
        value_and_gradient(lambda x: mse_loss(x, normalize), x),
        value_and_gradient(lambda x: plain_mse(x, normalize), x),
        tolerance,
    )


def test_mse_of_opposite_vectors_is_four_and_of_orthogonal_ones_two():
    a, b = torch.eye(2)
    torch.testing.assert_close(mse_loss(torch.stack([a, -a])[:, None]), torch.tensor(4.0))
    torch.testing.assert_close(mse_loss(torch.stack([a, b])[:, None]), torch.tensor(2.0))
    torch.testing.assert_close(mse_loss(torch.stack([a, 3 * a])[:, None], normalize=False), torch.tensor(2.0))


def test_mse_takes_any_dimensions_between_views_and_vector():
    x = embeddings(3, 64, 8)
    torch.testing.assert_close(mse_loss(x.view(3, 4, 16, 8)), mse_loss(x))


def test_a_zero_vector_has_a_finite_gradient():
    x = torch.zeros(2, 4, 8).requires_grad_()
    mse_loss(x).backward()
    assert bool(x.grad.isfinite().all())


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_embeddings_give_a_float32_loss(dtype):
    x = embeddings(2, 64, 8).to(dtype).requires_grad_()
    loss = w_mse_loss(x, 32, generator=seeded())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, w_mse_loss(x.float(), 32, generator=seeded()))
    loss.backward()
    assert x.grad.dtype == dtype and bool(x.grad.isfinite().all())
    assert mse_loss(x).dtype == torch.float32


@pytest.mark.parametrize("whitening", ["cholesky", "qr"])
def test_autocast_changes_neither_loss_nor_gradient(whitening):
    x = embeddings(2, 64, 8)

    def loss(x):
        return w_mse_loss(x, 32, whitening=whitening, generator=seeded())

    expected = value_and_gradient(loss, x)
    with torch.autocast("cpu", torch.bfloat16):
        seen = value_and_gradient(loss, x)
    assert torch.equal(seen[0], expected[0]) and torch.equal(seen[1], expected[1])


@pytest.mark.parametrize("whitening", ["cholesky", "qr", "zca"])
@pytest.mark.parametrize(("slice_size", "iterations"), [(64, 1), (32, 2)])
def test_compiled_in_one_graph_it_is_the_same(whitening, slice_size, iterations):
    def loss(x):
        return w_mse_loss(x, slice_size, iterations, whitening=whitening)

    torch._dynamo.reset()
    x = embeddings(2, 64, 8, dtype=torch.float64)
    results = []
    with torch.random.fork_rng(devices=[]):
        for form in (torch.compile(loss, backend="aot_eager", fullgraph=True), loss):
            torch.manual_seed(0)
            results.append(value_and_gradient(form, x))
    assert_same(*results, 1e-9)
    torch._dynamo.reset()


@pytest.mark.parametrize("loss", [mse_loss, lambda x: w_mse_loss(x, 6)], ids=["mse", "w-mse"])
def test_a_second_derivative_is_refused_rather_than_wrong(loss):
    x = embeddings(2, 6, 4, dtype=torch.float64).requires_grad_()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss(x) + x.pow(3).sum(), x, create_graph=True)


def test_a_zero_embedding_has_cosine_0_with_any_other_and_a_finite_gradient():
    x = torch.stack([torch.zeros(3, 4), torch.ones(3, 4), torch.ones(3, 4)]).requires_grad_()
    loss = mse_loss(x)
    torch.testing.assert_close(loss, torch.tensor(4 / 3))  # pairs: 2, 2 and 0
    assert torch.autograd.grad(loss, x)[0].isfinite().all()
    torch.testing.assert_close(mse_loss(torch.zeros(2, 3, 4)), torch.tensor(2.0))


def test_double_is_kept():
    assert w_mse_loss(embeddings(2, 64, 8, dtype=torch.float64), 32).dtype == torch.float64


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, slice_size, words",
    [
        ((2, 100, 16), 32, ["n = 100", "slice_size = 32", "96 or 128", "25 or 50"]),
        ((2, 30, 4), 64, ["n = 30", "slice_size = 64", "64 images", "n = 30: 30."]),
        ((2, 97, 16), 32, ["n = 97", "96 or 128", "97"]),
        ((2, 8, 16), 32, ["n = 8", "32 images", "none"]),
        ((2, 0, 16), 32, ["n = 0", "32 images"]),
        ((1, 64, 16), 32, ["d = 1", "at least 2"]),
        ((0, 64, 16), 32, ["d = 0", "at least 2"]),
        ((2, 64, 16), 16, ["slice_size = 16", "k = 16", "17", "32"]),
        ((2, 64, 16), 8, ["slice_size = 8", "k = 16", "17", "32"]),
        ((2, 64, 16), 0, ["slice_size = 0", "k = 16"]),
        ((2, 64, 16), -32, ["slice_size = -32", "k = 16"]),
        ((64, 16), 32, ["(d, n, k)", "(64, 16)"]),
        ((2, 2, 64, 16), 32, ["(d, n, k)", "(2, 2, 64, 16)"]),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_do(shape, slice_size, words):
    with pytest.raises(ValueError) as caught:
        w_mse_loss(torch.randn(shape, generator=seeded()), slice_size)
    for word in words:
        assert word in str(caught.value)


def test_the_sizes_it_suggests_work():
    for n, slice_size in ((96, 32), (128, 32), (100, 25), (100, 50)):
        assert bool(w_mse_loss(embeddings(2, n, 16), slice_size).isfinite())


@pytest.mark.parametrize("iterations", [0, -1])
def test_fewer_than_one_iteration_is_refused(iterations):
    with pytest.raises(ValueError, match=f"iterations.*{iterations}"):
        w_mse_loss(embeddings(2, 64, 8), 32, iterations)


@pytest.mark.parametrize(
    "options, message",
    [({"whitening": "svd"}, "cholesky, qr"), ({"eps": -0.1}, "eps"), ({"eps": 2.0}, "eps")]
    + [({"whitening": "standardize", "eps": 0.1}, "eps = 0.1")],
)
def test_bad_options_are_refused_as_whiten_does(options, message):
    with pytest.raises(ValueError, match=message):
        w_mse_loss(embeddings(2, 64, 8), 32, **options)


def test_integers_and_nan_are_refused():
    with pytest.raises(ValueError, match="floating point.*int64"):
        w_mse_loss(torch.ones(2, 64, 8, dtype=torch.int64), 32)
    x = embeddings(2, 64, 8)
    x[1, 7, 2] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        w_mse_loss(x, 32)


@pytest.mark.parametrize("shape", [(8,), (1, 4, 8), (0, 4, 8)], ids=str)
def test_mse_without_a_pair_is_refused(shape):
    with pytest.raises(ValueError, match="d >= 2"):
        mse_loss(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 0, 8), (2, 4, 0)], ids=str)
def test_mse_of_nothing_is_refused(shape):
    with pytest.raises(ValueError, match="no images or no dimensions"):
        mse_loss(torch.zeros(shape))


def test_standardized_slices_have_variance_1_and_keep_their_correlations():
    x = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 5
    scaled = standardize(x)
    for before, after in zip(x, scaled, strict=True):
        assert torch.allclose(after.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(after.T.cov(), before.T.corrcoef())


def test_the_standardized_loss_is_batchnorms_and_on_white_slices_that_of_w_mse():
    clouds = torch.randn(2, 32, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = [F.batch_norm(view, None, None, training=True, eps=1e-12) for view in clouds]
    expected = mse_loss(torch.stack(views))
    assert float(w_mse_loss(clouds, 32, whitening="standardize")) == pytest.approx(float(expected))
    white = whiten(clouds)
    standardized = w_mse_loss(white, 32, whitening="standardize")
    assert float(standardized) == pytest.approx(float(w_mse_loss(white, 32)))


def test_a_dimension_that_is_the_copy_of_another_passes_without_decorrelation_only():
    clouds = torch.randn(2, 32, 4, generator=torch.Generator().manual_seed(0))
    clouds = torch.cat([clouds, clouds[..., :1]], -1)
    assert 0 < float(w_mse_loss(clouds, 16, whitening="standardize")) < 4
    with pytest.raises(SingularCovarianceError):
        w_mse_loss(clouds, 16)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
def test_a_constant_dimension_cannot_be_standardized(constant):
    clouds = torch.randn(2, 33, 4, generator=torch.Generator().manual_seed(0))
    clouds[..., 2] = constant
    with pytest.raises(SingularCovarianceError, match="2 of 8 dimensions of slices are constant"):
        w_mse_loss(clouds, 33, whitening="standardize")
