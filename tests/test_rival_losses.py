"""The losses that W-MSE is compared with: against plain loops, in value and in every view's gradient."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wmse.losses import (
    barlow_twins_loss,
    byol_loss,
    cw_rgp_loss,
    epps_pulley,
    intl_loss,
    lejepa_loss,
    nt_xent_loss,
    vicreg_loss,
)
from wmse.whitening import SingularCovarianceError

views = pytest.mark.parametrize("d", [2, 3, 4])


def embeddings(d, n, k, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, k, generator=generator, dtype=torch.float64)
    return (base + 0.5 * torch.randn(d, n, k, generator=generator, dtype=torch.float64) + 0.3).to(dtype)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def value_and_gradient(loss, x):
    x = x.clone().requires_grad_()
    value = loss(x)
    return value.detach(), torch.autograd.grad(value, x)[0]


def assert_same(ours, plain, x, tolerance=1e-9):
    """Equal in value and in the gradient of every view, none of which is zero."""
    value, gradient = value_and_gradient(ours, x)
    expected, expected_gradient = value_and_gradient(plain, x)
    assert value.shape == () and abs(value - expected) < tolerance * max(1, abs(expected))
    for mine, theirs in zip(gradient, expected_gradient, strict=True):
        assert theirs.norm() > 0 and (mine - theirs).norm() < tolerance * theirs.norm()


def mean_over_pairs(two_views):
    """A loss of any number of views from one of two."""
    return lambda x: torch.stack([two_views(a, b) for a, b in itertools.combinations(x, 2)]).mean()


def cosine_distance(a, b):
    return (2 - 2 * F.cosine_similarity(a, b, dim=-1)).mean()


# --- plain references, of two views (n, k) ---------------------------------------------------------


def plain_nt_xent(a, b, temperature):
    rows = F.normalize(torch.cat([a, b]), dim=-1)
    n = len(a)
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [rows[i] @ rows[m] / temperature for m in range(2 * n) if m != i]
        total = total - rows[i] @ rows[j] / temperature + torch.stack(others).exp().sum().log()
    return total / (2 * n)


def plain_barlow_twins(a, b, weight):
    norm = nn.BatchNorm1d(a.shape[1], affine=False, dtype=a.dtype)
    correlation = norm(a).T @ norm(b) / len(a)
    total = 0.0
    for i, j in itertools.product(range(a.shape[1]), repeat=2):
        total = total + ((1 - correlation[i, i]) ** 2 if i == j else weight * correlation[i, j] ** 2)
    return total


def plain_vicreg(a, b):
    total = 25 * F.mse_loss(a, b)
    for view in (a, b):
        total = total + 25 * F.relu(1 - (view.var(0) + 1e-4).sqrt()).mean() / 2
        covariance = torch.cov(view.T)
        total = total + (covariance - covariance.diag().diag()).square().sum() / view.shape[1]
    return total


def inverse_root(sigma):
    values, vectors = torch.linalg.eigh(sigma)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T


def plain_cw_rgp(x, slice_size, groups, iterations, generator):
    """As CW-RGP is described, slice by slice, view by view and group by group."""
    d, n, k = x.shape
    orders = [torch.randperm(n, generator=generator) for _ in range(iterations)]
    dealt = torch.rand(d, iterations, n // slice_size, 1, k, generator=generator).argsort(-1)
    losses = []
    for t, order in enumerate(orders):
        for s, images in enumerate(order.split(slice_size)):
            white = []
            for v in range(d):
                h = x[v, images]
                h = h - h.mean(1, keepdim=True)
                z = torch.zeros_like(h)
                for channels in dealt[v, t, s, 0].split(k // groups):
                    group = h[:, channels]
                    z[:, channels] = inverse_root(group @ group.T / (len(channels) - 1)) @ group
                white.append(z)
            losses += [cosine_distance(a, b) for a, b in itertools.combinations(white, 2)]
    return torch.stack(losses).mean()


def plain_intl(a, b, iterations, weight, between_images):
    total, white = 0.0, []
    for view in (a, b):
        rows = view.T if between_images else view
        rows = rows - rows.mean(0)
        sigma = rows.T @ rows / (len(rows) - 1)
        P = torch.eye(len(sigma), dtype=sigma.dtype)
        for _ in range(iterations):
            P = 1.5 * P - 0.5 * P @ P @ P @ (sigma / sigma.trace())
        z = rows @ P / sigma.trace().sqrt()
        total = total + weight * ((z.var(0) - 1) ** 2).sum()
        white.append(z.T if between_images else z)
    return total + cosine_distance(*white)


# --- each against its reference -------------------------------------------------------------------


@views
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent(d, temperature):
    x = embeddings(d, 6, 5)
    plain = mean_over_pairs(lambda a, b: plain_nt_xent(a, b, temperature))
    assert_same(lambda x: nt_xent_loss(x, temperature), plain, x)


def test_nt_xent_is_cross_entropy_at_its_default_temperature():
    x = embeddings(2, 8, 5)
    rows = F.normalize(x.flatten(0, 1), dim=-1)
    logits = (rows @ rows.T / 0.5).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(16).roll(8))
    torch.testing.assert_close(nt_xent_loss(x), expected)


@views
def test_byol(d):
    targets = embeddings(d, 7, 5, seed=1)

    def plain(predictions):
        pairs = itertools.combinations(range(d), 2)
        both = [
            cosine_distance(predictions[i], targets[j]) + cosine_distance(predictions[j], targets[i])
            for i, j in pairs
        ]
        return torch.stack(both).mean()

    assert_same(lambda x: byol_loss(x, targets), plain, embeddings(d, 7, 5))


def test_byol_lies_between_0_and_8_and_sends_targets_no_gradient():
    x = embeddings(1, 5, 4).expand(2, 5, 4)
    assert abs(byol_loss(x, x)) < 1e-12 and abs(byol_loss(x, -x) - 8) < 1e-12
    targets = embeddings(2, 5, 4, seed=1).requires_grad_()
    predictions = embeddings(2, 5, 4).requires_grad_()
    byol_loss(predictions, targets).backward()
    assert targets.grad is None and predictions.grad.norm() > 0


@views
def test_barlow_twins(d):
    plain = mean_over_pairs(lambda a, b: plain_barlow_twins(a, b, 0.05))
    assert_same(lambda x: barlow_twins_loss(x, 0.05), plain, embeddings(d, 12, 5))


def test_barlow_twins_ignores_scale_and_shift():
    x = embeddings(2, 16, 4)
    moved = x * torch.tensor([1.0, 5.0, 0.2, 3.0]) + 7
    torch.testing.assert_close(barlow_twins_loss(moved), barlow_twins_loss(x), rtol=1e-3, atol=0)


@views
def test_vicreg(d):
    x = 0.6 * embeddings(d, 12, 5)  # some standard deviations below 1, some above
    stds = x.std(1)
    assert (stds < 1).any()
    assert_same(vicreg_loss, mean_over_pairs(plain_vicreg), x)


def test_vicreg_weights_are_those_of_its_three_terms():
    x = embeddings(2, 12, 5)
    parts = [vicreg_loss(x, *weights) for weights in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    torch.testing.assert_close(vicreg_loss(x, 2, 3, 4), 2 * parts[0] + 3 * parts[1] + 4 * parts[2])


@views
@pytest.mark.parametrize("groups, iterations", [(1, 1), (4, 1), (2, 3)])
def test_cw_rgp(d, groups, iterations):
    x = embeddings(d, 12, 48)
    assert_same(
        lambda x: cw_rgp_loss(x, 6, groups, iterations, generator=seeded()),
        lambda x: plain_cw_rgp(x, 6, groups, iterations, seeded()),
        x,
        tolerance=1e-7,
    )


def test_cw_rgp_deals_channels_anew_for_each_view():
    """Identical views still differ, unless there is one group to deal into."""
    x = embeddings(1, 12, 48).expand(2, 12, 48)
    assert abs(cw_rgp_loss(x, 6, 1, generator=seeded())) < 1e-9
    assert cw_rgp_loss(x, 6, 4, generator=seeded()) > 1e-3


@views
@pytest.mark.parametrize("between_images, n, k", [(True, 6, 20), (False, 20, 6)])
def test_intl(d, between_images, n, k):
    plain = mean_over_pairs(lambda a, b: plain_intl(a, b, 4, 0.05, between_images))
    assert_same(lambda x: intl_loss(x, between_images=between_images), plain, embeddings(d, n, k))


def plain_epps_pulley(x):
    """The integral of the test in closed form, over pairs of samples, for one column (n,)."""
    n, pairs = len(x), x[:, None] - x
    alike = math.sqrt(2 * math.pi) * torch.exp(-pairs.square() / 2).sum() / n
    crossed = 2 * math.sqrt(math.pi) * torch.exp(-x.square() / 4).sum()
    return alike - crossed + n * math.sqrt(2 * math.pi / 3)


@views
def test_lejepa(d):
    def plain(x):
        along = F.normalize(torch.randn(6, 8, generator=seeded()).double(), dim=0)
        scores = [plain_epps_pulley(column) for view in x for column in (view @ along).T]
        return 0.9 * (x - x.mean(0)).square().mean() + 0.1 * torch.stack(scores).mean()

    ours = lambda x: lejepa_loss(x, 0.1, 8, seeded())  # noqa: E731
    assert_same(ours, plain, embeddings(d, 20, 6), tolerance=1e-4)


def test_the_test_of_epps_and_pulley_tells_a_gaussian_from_all_else():
    samples = torch.randn(400, 500, generator=seeded(), dtype=torch.float64)
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)  # of Gaussian samples, for any n
    assert abs(epps_pulley(samples).mean() - expected) < 0.15
    two_points = samples.sign()  # mean 0 and variance 1, as a Gaussian has
    assert abs(float(two_points.var()) - 1) < 0.01 and epps_pulley(two_points).min() > 20
    assert epps_pulley(samples * 0.5).min() > 20 and epps_pulley(samples + 1).min() > 20
    collapsed = math.sqrt(2 * math.pi) - 2 * math.sqrt(math.pi) + math.sqrt(2 * math.pi / 3)
    assert abs(float(epps_pulley(torch.zeros(100, 1))) - 100 * collapsed) < 1e-3


# --- all of them ----------------------------------------------------------------------------------

LOSSES = {
    "nt_xent": nt_xent_loss,
    "byol": lambda x: byol_loss(x, x),
    "barlow_twins": barlow_twins_loss,
    "vicreg": vicreg_loss,
    "cw_rgp": lambda x: cw_rgp_loss(x, 4, 2, generator=seeded()),
    "intl": intl_loss,
    "lejepa": lambda x: lejepa_loss(x, generator=seeded()),
}
each = pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))


@each
def test_half_embeddings_are_compared_in_float32_also_under_autocast(loss):
    x = embeddings(2, 8, 24, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(x)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(x.float()), rtol=1e-4, atol=1e-5)


@each
@pytest.mark.parametrize("shape", [(8, 24), (1, 8, 24), (2, 0, 24), (2, 8, 24, 1)], ids=str)
def test_shapes_that_do_not_fit_are_refused(loss, shape):
    with pytest.raises(ValueError, match=r"\d"):
        loss(torch.ones(shape))


def test_what_each_refuses_besides():
    x = embeddings(2, 8, 24)
    with pytest.raises(ValueError, match="temperature.*0"):
        nt_xent_loss(x, 0.0)
    with pytest.raises(ValueError, match=r"predictions \(2, 8, 24\).*targets \(2, 8, 23\)"):
        byol_loss(x, x[..., 1:])
    with pytest.raises(ValueError, match="k = 24.*5 groups.*4 or 6"):
        cw_rgp_loss(x, 4, 5)
    with pytest.raises(ValueError, match="6 channels.*slice_size = 8.*5 images.*3 is advised"):
        cw_rgp_loss(x, 8, 4)
    with pytest.raises(ValueError, match="n = 8.*slice_size = 3.*6 or 9.*2 or 4"):
        cw_rgp_loss(x, 3, 4)
    with pytest.raises(ValueError, match="n = 6.*k = 8"):
        intl_loss(embeddings(2, 8, 6))
    with pytest.raises(ValueError, match="weight.*0 to 1.*1.5"):
        lejepa_loss(x, 1.5)
    flat = x.clone()
    flat[1, 3] = flat[1, 2]
    with pytest.raises(SingularCovarianceError):
        cw_rgp_loss(flat, 8, 1)


@each
def test_nothing_but_positives_agreeing_lowers_them(loss):
    """Views that agree score better than views that are matched up wrongly."""
    x = embeddings(2, 8, 24)
    wrong = torch.stack([x[0], x[1].roll(1, 0)])
    assert loss(x) < loss(wrong) and math.isfinite(loss(wrong))


def test_arguments_may_be_named_and_are_promoted_too():
    x = embeddings(2, 8, 24, dtype=torch.bfloat16)
    torch.testing.assert_close(vicreg_loss(embeddings=x), vicreg_loss(x))
    torch.testing.assert_close(byol_loss(predictions=x, targets=x), byol_loss(x, x))
    assert nt_xent_loss(embeddings=x, temperature=0.2).dtype == torch.float32


def test_cw_rgp_takes_the_steps_of_newton_schulz_that_it_is_told():
    x = embeddings(2, 8, 24)
    losses = [cw_rgp_loss(x, 8, 1, whitening="newton-schulz", whitening_steps=steps) for steps in (1, 5, 40)]
    torch.testing.assert_close(losses[2], cw_rgp_loss(x, 8, 1), rtol=1e-6, atol=0)
    assert len({round(float(loss), 6) for loss in losses}) == 3
