"""Whitening: what it promises, its gradient, and that nothing wrong passes in silence."""

import math

import pytest
import torch

from wmse import whitening
from wmse.whitening import FACTORISATIONS, WHITENING, SingularCovarianceError, whiten

every = pytest.mark.parametrize("method", WHITENING)
factorised = pytest.mark.parametrize("method", FACTORISATIONS)
triangular = pytest.mark.parametrize("method", ["cholesky", "qr"])
shrunken = pytest.mark.parametrize("eps", [0.0, 0.1])


def sample(*shape, seed=0, dtype=torch.float32):
    """Correlated samples with a mean: what a network might put out."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    k = shape[-1]
    mix = torch.eye(k, dtype=torch.float64) + 0.3 * torch.randn(
        k, k, generator=generator, dtype=torch.float64
    ) / math.sqrt(k)
    return (x @ mix + torch.randn(k, generator=generator, dtype=torch.float64)).to(dtype)


def covariance(z):
    z = z.double()
    centred = z - z.mean(-2, keepdim=True)
    return centred.mT @ centred / (z.shape[-2] - 1)


def distance_from_white(z):
    return float((covariance(z) - torch.eye(z.shape[-1], dtype=torch.float64)).abs().max())


def plain_whiten(x, eps=0.0):
    """The same through plain torch operations, differentiated by autograd."""
    n, k = x.shape[-2:]
    centred = x - x.mean(-2, keepdim=True)
    sigma = (1 - eps) * centred.mT @ centred / (n - 1) + eps * torch.eye(k, dtype=x.dtype)
    factor = torch.linalg.cholesky(sigma)
    return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT


def value_and_gradient(function, x, weight):
    x = x.clone().requires_grad_()
    z = function(x)
    (gradient,) = torch.autograd.grad((z * weight).sum(), x)
    return z.detach(), gradient


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


# --- what comes out -------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("n, k", [(2, 1), (16, 8), (64, 32), (128, 64), (256, 128), (1000, 16)])
def test_output_has_mean_zero_and_covariance_identity(method, lead, n, k):
    z = whiten(sample(*lead, n, k), method)
    assert z.shape == (*lead, n, k) and z.dtype == torch.float32
    assert float(z.mean(-2).abs().max()) < 1e-5
    assert distance_from_white(z) < 1e-4


@every
@shrunken
def test_each_leading_index_is_a_slice_of_its_own(method, eps):
    x = sample(2, 3, 40, 8, dtype=torch.float64)
    together = whiten(x, method, eps)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], whiten(x[i, j], method, eps), rtol=1e-10, atol=1e-10)


@triangular
@shrunken
def test_it_is_the_papers_whitening(method, eps):
    """z = W (v - mu) with W = L^-1, L L^T = (1 - eps) Sigma + eps I, divisor n - 1, sample by sample."""
    x = sample(20, 6, dtype=torch.float64)
    mean = sum(x) / 20
    sigma = sum(torch.outer(v - mean, v - mean) for v in x) / 19
    factor = torch.linalg.cholesky((1 - eps) * sigma + eps * torch.eye(6, dtype=torch.float64))
    expected = torch.stack([factor.inverse() @ (v - mean) for v in x])
    torch.testing.assert_close(whiten(x, method, eps), expected, rtol=1e-10, atol=1e-10)


@triangular
def test_eps_shrinks_so_the_output_is_not_quite_white(method):
    x = sample(64, 8, dtype=torch.float64)
    sigma, eps = covariance(x), 0.1
    factor = torch.linalg.cholesky((1 - eps) * sigma + eps * torch.eye(8, dtype=torch.float64))
    expected = factor.inverse() @ sigma @ factor.inverse().T
    z = whiten(x, method, eps)
    torch.testing.assert_close(covariance(z), expected, rtol=1e-8, atol=1e-8)
    assert distance_from_white(z) > 1e-3


@every
def test_eps_one_only_centres(method):
    """And turns, for PCA: the axes of I are any."""
    x = sample(12, 4)
    centred = x - x.mean(0)
    z = whiten(x, method, 1.0)
    torch.testing.assert_close(z @ z.mT, centred @ centred.mT, rtol=1e-4, atol=1e-4)
    if method != "pca":
        torch.testing.assert_close(z, centred)


@every
def test_default_method_is_cholesky_without_shrinkage(method):
    x = sample(32, 8)
    assert torch.equal(whiten(x), whiten(x, "cholesky", 0.0))


@shrunken
@pytest.mark.parametrize("n, k", [(40, 32), (64, 32), (256, 64)])
def test_qr_equals_cholesky_in_value_and_gradient(n, k, eps):
    x, weight = sample(3, n, k, dtype=torch.float64), sample(3, n, k, seed=1, dtype=torch.float64)
    cholesky = value_and_gradient(lambda x: whiten(x, "cholesky", eps), x, weight)
    qr = value_and_gradient(lambda x: whiten(x, "qr", eps), x, weight)
    assert relative(qr[0], cholesky[0]) < 1e-10 and relative(qr[1], cholesky[1]) < 1e-9
    in_float32 = whiten(x.float(), "qr", eps), whiten(x.float(), "cholesky", eps)
    assert relative(*in_float32) < 1e-4


def test_qr_survives_conditioning_that_cholesky_refuses():
    """Two directions 1e-3 apart: a squared share of 1e-6 is noise in float32, a length of 1e-3 is not."""
    x = sample(128, 16)
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]
    with pytest.raises(SingularCovarianceError, match="qr"):
        whiten(x, "cholesky")
    z = whiten(x, "qr")
    assert distance_from_white(z) < 1e-4
    assert relative(z, whiten(x.double(), "cholesky")) < 1e-2


@every
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_scale_of_the_input_does_not_matter(method, scale):
    assert distance_from_white(whiten(sample(64, 16) * scale, method)) < 1e-4


@triangular
def test_dimensions_of_very_different_scale_do_not_matter(method):
    """A diagonal map is triangular: a variance of 1e-12 beside one of 1 is no sign of singularity."""
    scales = torch.logspace(-6, 2, 16)
    assert distance_from_white(whiten(sample(64, 16) * scales, method)) < 1e-4


@every
@pytest.mark.parametrize("shift", [1.0, 30.0])
def test_invariance_to_a_shift(method, shift):
    x = sample(2, 64, 16, dtype=torch.float64)
    torch.testing.assert_close(whiten(x + shift, method), whiten(x, method), rtol=1e-9, atol=1e-9)
    assert relative(whiten(x.float() + shift, method), whiten(x, method)) < 1e-3


@triangular
def test_invariance_to_upper_triangular_maps_but_not_to_others(method):
    x = sample(2, 64, 16, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    upper = torch.randn(16, 16, generator=generator, dtype=torch.float64).triu()
    upper.diagonal().copy_(torch.rand(16, generator=generator) + 0.5)
    torch.testing.assert_close(whiten(x @ upper, method), whiten(x, method), rtol=1e-8, atol=1e-8)
    assert relative(whiten(x @ upper.T, method), whiten(x, method)) > 0.1


@every
def test_rows_keep_their_order_and_permuting_them_permutes_the_output(method):
    x = sample(40, 8, dtype=torch.float64)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(whiten(x[order], method), whiten(x, method)[order], rtol=1e-9, atol=1e-9)


# --- the members of the family that are not triangular -------------------------------------------


def whitening_matrix(method, x, **options):
    """W (k, k) of z = W (v - mu), recovered from input and output, float64."""
    centred = x.double() - x.double().mean(0)
    return torch.linalg.lstsq(centred, whiten(x, method, **options).double()).solution.T


def test_zca_is_symmetric_positive_and_the_inverse_root():
    x = sample(64, 16)
    W = whitening_matrix("zca", x)
    torch.testing.assert_close(W, W.T, rtol=0, atol=1e-5)
    assert torch.linalg.eigvalsh(W).min() > 0
    torch.testing.assert_close(W @ covariance(x) @ W, torch.eye(16).double(), rtol=0, atol=1e-4)


def test_zca_moves_the_samples_least():
    x = sample(64, 8, dtype=torch.float64)
    moved = {method: float((whiten(x, method) - x + x.mean(0)).square().sum()) for method in FACTORISATIONS}
    assert min(moved, key=moved.get) == "zca"


def test_pca_is_zca_rotated_to_the_principal_axes():
    x = sample(64, 16)
    W, zca = whitening_matrix("pca", x), whitening_matrix("zca", x)
    rotation = W @ torch.linalg.inv(zca)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(16).double(), rtol=0, atol=1e-4)
    values = torch.linalg.eigvalsh(covariance(x)).flip(0)
    torch.testing.assert_close(W @ W.T, torch.diag(1 / values), rtol=1e-3, atol=1e-4)
    axes = W * values.sqrt()[:, None]
    assert bool((axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all())


def test_newton_schulz_approaches_zca_as_steps_grow_and_stays():
    x = sample(3, 64, 16)
    target = whiten(x, "zca")
    distances = [relative(whiten(x, "newton-schulz", steps=t), target) for t in range(1, 40)]
    assert all(a > b for a, b in zip(distances[:8], distances[1:9], strict=True))
    assert max(distances[14:]) < 1e-4, "the uncoupled form blows up here"
    assert distances[0] > 0.1, "one step must not be enough, or the test shows nothing"


def test_newton_schulz_is_the_iteration_of_the_paper():
    x = sample(40, 6, dtype=torch.float64)
    sigma = covariance(x)
    P = torch.eye(6, dtype=torch.float64)
    for _ in range(4):
        P = 1.5 * P - 0.5 * P @ P @ P @ sigma / sigma.trace()
    expected = (x - x.mean(0)) @ P / sigma.trace().sqrt()
    torch.testing.assert_close(whiten(x, "newton-schulz", steps=4), expected, rtol=1e-10, atol=1e-10)


def plain_eigen(x, method):
    """PCA or ZCA through torch.linalg.eigh, whose own gradient divides by gaps between eigenvalues."""
    centred = x - x.mean(-2, keepdim=True)
    values, vectors = torch.linalg.eigh(centred.mT @ centred / (x.shape[-2] - 1))
    values, vectors = values.flip(-1), vectors.flip(-1)
    z = centred @ vectors * values.rsqrt()[..., None, :]
    signs = vectors.detach().gather(-2, vectors.detach().abs().argmax(-2, keepdim=True)).sign()
    return z @ vectors.mT if method == "zca" else z * signs


@pytest.mark.parametrize("method", ["zca", "pca"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_eigen_gradients_equal_autograd_where_eigenvalues_are_apart(method, dtype, tolerance):
    spread = torch.linspace(1, 3, 8, dtype=dtype)
    x = whiten(sample(3, 64, 8, dtype=dtype), "zca") * spread + 1
    weight = sample(3, 64, 8, seed=7, dtype=dtype)
    ours, plain = (
        value_and_gradient(f, x, weight)
        for f in (lambda x: whiten(x, method), lambda x: plain_eigen(x, method))
    )
    for a, b in zip(ours, plain, strict=True):
        assert relative(a, b) < tolerance


def test_zca_is_right_where_eigenvalues_coincide():
    """There plain autograd gives NaN or noise; the truth is that of the limit, here from Newton-Schulz."""
    x = whiten(sample(32, 6, dtype=torch.float64), "cholesky")  # covariance I: six equal eigenvalues
    weight = sample(32, 6, seed=3, dtype=torch.float64)
    _, ours = value_and_gradient(lambda x: whiten(x, "zca"), x, weight)
    _, limit = value_and_gradient(lambda x: whiten(x, "newton-schulz", steps=40), x, weight)
    assert relative(ours, limit) < 1e-8
    assert torch.autograd.gradcheck(lambda x: whiten(x, "zca"), (x.requires_grad_(),))


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-9, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pca_has_a_bounded_gradient_where_eigenvalues_coincide(gap, dtype):
    x = whiten(sample(32, 6, dtype=torch.float64), "zca")
    x = (x * torch.tensor([1 + gap, 1, 1, 2, 2, 3], dtype=torch.float64)).to(dtype)
    weight = sample(32, 6, seed=3, dtype=dtype)
    _, gradient = value_and_gradient(lambda x: whiten(x, "pca"), x, weight)
    limit = torch.finfo(dtype).eps ** -0.5
    assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) < 10 * limit


def test_fewer_than_one_step_is_refused():
    with pytest.raises(ValueError, match="steps.*0"):
        whiten(sample(8, 2), "newton-schulz", steps=0)


def test_newton_schulz_refuses_a_slice_without_spread():
    x = sample(3, 16, 4)
    x[1] = 2.0
    with pytest.raises(SingularCovarianceError, match="slice 1"):
        whiten(x, "newton-schulz")


@every
def test_input_is_left_as_it_was_and_need_not_be_contiguous(method):
    x = sample(8, 3, 40).permute(1, 2, 0)
    before = x.clone()
    z = whiten(x, method)
    assert torch.equal(x, before)
    torch.testing.assert_close(z, whiten(x.contiguous(), method))


@every
@shrunken
def test_no_slices_give_no_slices(method, eps):
    assert whiten(torch.empty(0, 8, 4), method, eps).shape == (0, 8, 4)


# --- gradient -------------------------------------------------------------------------------------


@every
@shrunken
@pytest.mark.parametrize("shape", [(9, 4), (3, 7, 3), (2, 2, 6, 2)], ids=str)
def test_gradcheck_in_double_precision(method, eps, shape):
    x = sample(*shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: whiten(x, method, eps), (x,))


@triangular
@shrunken
@pytest.mark.parametrize("k", [8, 32, 64, 128])
@pytest.mark.parametrize("ratio", [1.25, 1.5, 2, 4])
def test_equal_to_autograd_through_plain_operations_in_double(method, eps, k, ratio):
    """The formula itself: to 1e-9, so that no term can be missing."""
    n = math.ceil(ratio * k)
    x, weight = sample(2, n, k, dtype=torch.float64), sample(2, n, k, seed=1, dtype=torch.float64)
    ours = value_and_gradient(lambda x: whiten(x, method, eps), x, weight)
    plain = value_and_gradient(lambda x: plain_whiten(x, eps), x, weight)
    assert relative(ours[0], plain[0]) < 1e-9 and relative(ours[1], plain[1]) < 1e-9


@shrunken
@pytest.mark.parametrize("k", [16, 32, 64, 128])
@pytest.mark.parametrize("ratio", [1.25, 1.5, 2, 4])
def test_equal_to_autograd_through_plain_operations_in_float32(eps, k, ratio):
    """1e-5 relative. (At k = 8, n = 10 plain operations are themselves up to 2e-4 off double.)"""
    n = math.ceil(ratio * k)
    generator = torch.Generator().manual_seed(k)
    x, weight = torch.randn(2, 3, n, k, generator=generator).unbind(0)
    ours = value_and_gradient(lambda x: whiten(x, "cholesky", eps), x, weight)
    plain = value_and_gradient(lambda x: plain_whiten(x, eps), x, weight)
    assert relative(ours[0], plain[0]) < 1e-5
    assert relative(ours[1], plain[1]) < 1e-5


@triangular
def test_gradient_keeps_the_mean_and_is_orthogonal_to_what_changes_nothing(method):
    """A shift and x -> x U leave z as it is, so the gradient has no component along them."""
    x, weight = sample(3, 40, 8, dtype=torch.float64), sample(3, 40, 8, seed=1, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda x: whiten(x, method), x, weight)
    assert float(gradient.sum(-2).abs().max()) < 1e-12
    assert float((x.mT @ gradient).triu().abs().max()) < 1e-10


@every
def test_half_the_graph_may_be_asked_for(method):
    """No gradient wanted, or one of zeros: neither fails."""
    x = sample(16, 4)
    assert not whiten(x, method).requires_grad
    with torch.no_grad():
        assert not whiten(x.requires_grad_(), method).requires_grad
    (zero,) = torch.autograd.grad((whiten(x, method) * 0).sum(), x)
    assert torch.equal(zero, torch.zeros_like(x))


@factorised
def test_a_second_derivative_is_refused_rather_than_wrong(method):
    """Also where x reaches the loss another way, so that autograd would find a path and say nothing."""
    x = sample(12, 3, dtype=torch.float64).requires_grad_()
    loss = whiten(x, method).pow(3).sum() + x.pow(3).sum()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, x, create_graph=True)


@every
def test_the_gradient_can_be_taken_twice_from_a_kept_graph(method):
    x = sample(16, 4).requires_grad_()
    loss = whiten(x, method).pow(3).sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


# --- precision, autocast, compile -----------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_input_is_whitened_in_float32(method, dtype):
    x = sample(64, 16).to(dtype).requires_grad_()
    z = whiten(x, method)
    assert z.dtype == torch.float32 and distance_from_white(z.detach()) < 1e-4
    assert torch.equal(z, whiten(x.float(), method))
    z.pow(3).sum().backward()
    assert x.grad.dtype == dtype and bool(x.grad.isfinite().all())


@every
def test_double_stays_double(method):
    z = whiten(sample(64, 16, dtype=torch.float64), method)
    assert z.dtype == torch.float64 and distance_from_white(z) < 1e-12


@factorised
@shrunken
@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast_changes_nothing(method, eps, backward_inside):
    x, weight = sample(3, 64, 16), sample(3, 64, 16, seed=1)
    expected = value_and_gradient(lambda x: whiten(x, method, eps), x, weight)
    x = x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        z = whiten(x, method, eps)
        if backward_inside:
            (z * weight).sum().backward()
    if not backward_inside:
        (z * weight).sum().backward()
    assert z.dtype == torch.float32
    assert torch.equal(z.detach(), expected[0]) and torch.equal(x.grad, expected[1])


@pytest.fixture
def compiled():
    """A compiled whiten without code generation: what Dynamo and AOTAutograd trace is what runs."""
    torch._dynamo.reset()
    yield lambda method, eps: torch.compile(
        lambda x: whiten(x, method, eps), backend="aot_eager", fullgraph=True
    )
    torch._dynamo.reset()


@every
@shrunken
def test_compiled_in_one_graph_it_is_the_same(compiled, method, eps):
    x, weight = sample(3, 64, 16), sample(3, 64, 16, seed=1)
    ours = value_and_gradient(compiled(method, eps), x, weight)
    plain = value_and_gradient(lambda x: whiten(x, method, eps), x, weight)
    assert relative(ours[0], plain[0]) < 1e-6 and relative(ours[1], plain[1]) < 1e-5


@factorised
def test_compiled_it_still_refuses(compiled, method):
    run = compiled(method, 0.0)
    x = sample(3, 64, 16)
    assert distance_from_white(run(x)) < 1e-4
    for wanted in (False, True):
        bad = x.clone()
        bad[1, :, 3] = 2.0
        with pytest.raises(SingularCovarianceError, match="slice 1"):
            run(bad.requires_grad_(wanted))
        bad = x.clone()
        bad[2, 5, 3] = math.nan
        with pytest.raises(ValueError, match="NaN or infinity in slice 2"):
            run(bad.requires_grad_(wanted))
    with pytest.raises(Exception, match="n = 16 samples of k = 16"):
        run(x[:, :16])


# --- refusals that need no look at the values -----------------------------------------------------


@every
@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(()), r"\(\.\.\., n, k\).*shape \(\)"),
        (torch.zeros(5), r"\(\.\.\., n, k\).*shape \(5,\)"),
        (torch.zeros(8, 4, dtype=torch.int64), "floating point.*torch.int64"),
        (torch.zeros(8, 4, dtype=torch.bool), "floating point.*torch.bool"),
        (torch.zeros(8, 4, dtype=torch.complex64), "floating point.*torch.complex64"),
        (torch.zeros(0, 4), "n = 0, k = 4"),
        (torch.zeros(4, 0), "n = 4, k = 0"),
        (torch.zeros(0, 0), "n = 0, k = 0"),
        (torch.randn(3, 4), "n = 3.*k = 4.*2k = 8"),
        (torch.randn(2, 4, 4), "n = 4.*k = 4.*2k = 8"),
        (torch.randn(1, 1), "n = 1.*k = 1.*2k = 2"),
    ],
    ids=lambda value: f"{value.dtype}{tuple(value.shape)}" if isinstance(value, torch.Tensor) else "",
)
def test_bad_shapes_and_types_are_refused_with_what_was_seen(method, x, message):
    with pytest.raises(ValueError, match=message) as caught:
        whiten(x, method)
    assert not isinstance(caught.value, SingularCovarianceError)


@every
@pytest.mark.parametrize("eps", [-0.1, -1e-12, 1.5, math.nan, math.inf])
def test_eps_outside_zero_to_one_is_refused(method, eps):
    with pytest.raises(ValueError, match=rf"eps.*\[0, 1\].*{eps}"):
        whiten(sample(8, 2), method, eps)


def test_an_unknown_method_lists_those_there_are():
    with pytest.raises(ValueError, match="'svd'; there are: cholesky, qr, zca, pca, newton-schulz"):
        whiten(sample(8, 2), "svd")


@every
@shrunken
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_or_infinity_is_refused_and_its_slice_named(method, eps, value):
    x = sample(2, 3, 16, 4)
    x[1, 2, 7, 0] = value
    with pytest.raises(ValueError, match=r"NaN or infinity in slice \(1, 2\)") as caught:
        whiten(x, method, eps)
    assert "n = 16" in str(caught.value) and "k = 4" in str(caught.value)
    assert not isinstance(caught.value, SingularCovarianceError)


# --- refusals of what cannot be factorised --------------------------------------------------------


def test_singular_covariance_is_a_value_error():
    assert issubclass(SingularCovarianceError, ValueError)


@factorised
def test_the_message_names_sizes_slice_and_ways_out(method):
    x = sample(7, 64, 16)
    x[4, :, 9] = 1.0
    with pytest.raises(SingularCovarianceError) as caught:
        whiten(x, method)
    for words in ("slice 4", "1 of 7", "n = 64", "k = 16", "n >= 2k = 32", "smaller k", "eps"):
        assert words in str(caught.value)
    assert ("'qr'" in str(caught.value)) == (method == "cholesky")


@factorised
@pytest.mark.parametrize("lead, index, name", [((), (), "the slice"), ((4,), (2,), "slice 2"),
                                               ((2, 3), (1, 0), r"slice \(1, 0\)")])  # fmt: skip
def test_only_one_bad_slice_is_found_and_named(method, lead, index, name):
    x = sample(*lead, 32, 8)
    x[index][:, 5] = x[index][:, 2]
    with pytest.raises(SingularCovarianceError, match=rf"{name} \(1 of {max(1, math.prod(lead))} slices"):
        whiten(x, method)


def constant(x):
    x[:, -1] = 3.7


def duplicate(x):
    x[:, -1] = x[:, 0]


def combination(x):
    x[:, -1] = x[:, :-1].sum(1)


def all_alike(x):
    x.copy_(x[:1].clone())


def all_zero(x):
    x.zero_()


def subspace(x):
    k = x.shape[1]
    x.copy_(x[:, : k // 2] @ torch.randn(k // 2, k, generator=torch.Generator().manual_seed(5)))


def one_short(x):
    k = x.shape[1]
    x.copy_(x[:, : k - 1] @ torch.randn(k - 1, k, generator=torch.Generator().manual_seed(5)))


def few_distinct_rows(x):
    """Only k distinct samples, repeated: the covariance has rank k - 1."""
    n, k = x.shape
    x.copy_(x[torch.arange(n) % k].clone())


DEFECTS = [constant, duplicate, combination, all_alike, all_zero, subspace, one_short, few_distinct_rows]


@factorised
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficient_slices_are_refused(method, defect, dtype):
    for k in (2, 8, 32, 64):
        for seed in range(10):
            x = sample(2 * k + seed, k, seed=seed, dtype=dtype)
            if defect is subspace and k == 2:
                continue
            if dtype == torch.float64:
                y = x.float()
                defect(y)  # rank deficient to float32 only: what a network would hand over
                if defect in (combination, subspace, one_short):
                    continue
                x = y.double()
            else:
                defect(x)
            with pytest.raises(SingularCovarianceError):
                whiten(x, method)


@every
@pytest.mark.parametrize("k", [1, 2, 8, 64, 128])
def test_n_not_more_than_k_is_always_refused(method, k):
    for seed in range(40):
        for n in {k, max(1, k - 1)}:
            with pytest.raises(ValueError, match=f"n = {n} "):
                whiten(sample(n, k, seed=seed), method)


@factorised
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [4, 16, 64])
def test_n_of_k_in_disguise_is_always_refused(method, dtype, k):
    """k distinct samples, each seen twice: rank k - 1, where Cholesky succeeds in silence every other time.

    The pivots alone (L_jj^2 / Sigma_jj < 100 k eps) let some of these through at each k.
    """
    silent = 0
    for seed in range(200):
        x = torch.randn(k, k, generator=torch.Generator().manual_seed(seed)).to(dtype).repeat(2, 1)
        silent += int(torch.linalg.cholesky_ex(covariance(x).to(dtype))[1] == 0)
        with pytest.raises(SingularCovarianceError):
            whiten(x, method)
    assert silent > 40  # the danger is real


@factorised
@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("centre", [0.0, 1.0, 100.0])
def test_nearly_singular_slices_are_refused_or_white(method, noise, centre):
    """Whatever the conditioning: an error, or the covariance within 1e-2 of I. Never a wrong number."""
    for k in (4, 32):
        for seed in range(6):
            generator = torch.Generator().manual_seed(seed)
            rank = 1 + seed % k
            x = torch.randn(2 * k, rank, generator=generator) @ torch.randn(rank, k, generator=generator)
            x = x + centre + noise * torch.randn(2 * k, k, generator=generator)
            try:
                z = whiten(x, method)
            except SingularCovarianceError:
                continue
            assert distance_from_white(z) < 1e-2


@factorised
@pytest.mark.parametrize("k", [32, 64, 128])
def test_n_of_1_1_k_is_never_refused(method, k):
    n = math.ceil(1.1 * k)
    x = torch.randn(200, n, k, generator=torch.Generator().manual_seed(k))
    assert distance_from_white(whiten(x, method)) < 1e-2


@every
def test_a_batch_collapsed_to_noise_still_whitens(method):
    """Whitened outputs cannot diagnose collapse: noise of 1e-7 has a covariance like any other."""
    assert distance_from_white(whiten(1e-7 * sample(64, 16), method)) < 1e-4


@every
def test_eps_whitens_what_is_singular(method):
    x = sample(3, 32, 8)
    x[1, :, 5] = x[1, :, 2]
    z = whiten(x, method, 1e-2)
    assert bool(z.isfinite().all())
    flat = whiten(torch.ones(32, 8), method, 1e-2)
    torch.testing.assert_close(flat, torch.zeros(32, 8))


@factorised
def test_where_the_check_is_deferred_a_bad_slice_is_nan_and_the_others_are_white(method, monkeypatch):
    """What CUDA sees before the error arrives: nothing computed from a bad slice can pass for sound."""
    seen = []
    monkeypatch.setattr(whitening, "require", lambda ok, explain: seen.append(ok))
    x = sample(3, 32, 8)
    x[1, :, 5] = x[1, :, 2]
    x.requires_grad_()
    z = whiten(x, method)
    assert seen[0].tolist() == [True, False, True]
    assert bool(z[1].isnan().all()) and distance_from_white(z[[0, 2]].detach()) < 1e-4
    z.square().sum().backward()
    assert bool(x.grad[1].isnan().all())
    assert bool(x.grad[[0, 2]].isfinite().all())


def test_a_triangle_is_inverted_by_blocks_as_well_as_in_one():
    """CUDA takes this way; L comes from slices in the training size."""
    factor = torch.linalg.cholesky(covariance(sample(2, 3, 128, 64))).float()
    exact = torch.linalg.inv(factor.double())
    one, blocks = whitening._triangular_inverse(factor), whitening._inverse_by_blocks(factor)
    errors = [float((inverse - exact).abs().max() / exact.abs().max()) for inverse in (one, blocks)]
    assert errors[1] < max(2 * errors[0], 1e-6)
    assert torch.equal(blocks, blocks.tril())
