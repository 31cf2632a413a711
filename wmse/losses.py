"""The W-MSE loss, the MSE loss that it mends, and the losses it is compared with.

All of them share this contract, unless a docstring says otherwise. `embeddings` are (d, n, k), floating
point: d >= 2 positives (views) of n images, k dimensions. The result is a scalar of at least float32, also
under autocast: the mean over all d(d-1)/2 pairs of views. ValueError for other shapes and for values out of
range, with what was wrong. The losses are pure functions, except that drawing slices moves a generator on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wmse import numerics
from wmse.numerics import at_least_float32
from wmse.whitening import WHITENING, SingularCovarianceError, whiten

STANDARDIZE = "standardize"
W_MSE_WHITENING = (*WHITENING, STANDARDIZE)


def w_mse_loss(
    embeddings: Tensor,
    slice_size: int,
    iterations: int = 1,
    normalize: bool = True,
    whitening: str = "cholesky",
    generator: torch.Generator | None = None,
    eps: float = 0.0,
    whitening_steps: int = 15,
) -> Tensor:
    """W-MSE: the mean distance between *whitened* positives (paper, Sec. 3: the loss, and "batch slicing").

    A random permutation of the images, shared by the views, cuts the batch into slices of `slice_size`
    images. Each slice of each view is whitened with its own mean and covariance; then positives are compared
    as in `mse_loss`. Whitening enlarges what is left of collapsed embeddings: noise, which does not agree
    between two views. So collapse is no minimum, and no negatives are needed.

    Args:
        embeddings: (d, n, k), n a multiple of `slice_size`.
        slice_size: images per slice; more than k, and 2k at least is advised.
        iterations: permutations to average over (`w_iter` of the official code); more lower the variance.
        normalize: as in `mse_loss`.
        whitening, eps, whitening_steps: method, shrinkage and steps of "newton-schulz", as in `whiten`; the
            method "standardize" is an ablation that only scales dimensions, as `standardize` does.
        generator: source of the permutations; the global one of the embeddings' device if None.

    Raises:
        ValueError: sizes that do not fit, naming the nearest that do; bad values, as in `whiten`.
        SingularCovarianceError: as in `whiten`; the slice is named as (view, iteration, slice).
    """
    _, n, k = _shape(embeddings)
    numerics.check_sizes(n, k, slice_size, iterations)
    slices = _slices(embeddings, slice_size, iterations, generator)
    if whitening == STANDARDIZE:
        if eps:
            raise ValueError(f"eps = {eps} shrinks a covariance, and {STANDARDIZE!r} has none: leave it at 0")
        return mse_loss(standardize(slices), normalize)
    return mse_loss(whiten(slices, whitening, eps, whitening_steps), normalize)


@at_least_float32
def standardize(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 (divisor n - 1) for each dimension of every slice of x (..., n, k).

    This is BatchNorm without its affine map: whitening's scaling without its decorrelation. It returns the
    shape of x, at least float32. SingularCovarianceError if a dimension has no spread beyond rounding.
    """
    centred = x - x.mean(-2, keepdim=True)
    deviations = (centred.square().sum(-2, keepdim=True) / (x.shape[-2] - 1)).sqrt()
    # The mean of a constant dimension is rounded, and what is left of the constant must not be scaled up.
    ok = deviations > 10 * torch.finfo(x.dtype).eps * x.detach().abs().amax(-2, keepdim=True)
    numerics.require(
        ok,
        lambda flags: SingularCovarianceError(
            f"{int((~flags).sum())} of {flags.numel()} dimensions of slices are constant, or hold NaN or "
            "infinity: look for collapse, or for units of the network that never move."
        ),
    )
    return centred / deviations


def _slices(
    embeddings: Tensor, slice_size: int, iterations: int, generator: torch.Generator | None
) -> Tensor:
    """Permutations, shared by the views, cut up: (d, iterations, n / slice_size, slice_size, k)."""
    d, n, k = embeddings.shape
    source = generator.device if generator is not None else embeddings.device
    permutations = [torch.randperm(n, generator=generator, device=source) for _ in range(iterations)]
    order = torch.cat(permutations).to(embeddings.device, non_blocking=True)
    return embeddings.index_select(1, order).view(d, iterations, n // slice_size, slice_size, k)


@at_least_float32
def mse_loss(embeddings: Tensor, normalize: bool = True) -> Tensor:
    """Mean distance between the positives of an image: the paper's loss without its whitening (Sec. 3).

    Its trivial minimum is collapse, embeddings that are all the same: without whitening this is the baseline.

    Args:
        embeddings: (d, ..., k): any number of dimensions may index the images.
        normalize: True: 2 - 2 cos(v_i, v_j), the squared distance of the vectors on the unit sphere, the
            paper's default. False: the squared distance divided by k, the paper's Euclidean variant.
    """
    shape = tuple(embeddings.shape)
    if len(shape) < 2 or shape[0] < 2:
        raise ValueError(f"embeddings must be (d, ..., k) with d >= 2 views; got shape {shape}")
    if not embeddings.numel():
        raise ValueError(f"embeddings of shape {shape} hold no images or no dimensions")
    d, k = len(embeddings), embeddings.shape[-1]
    images = embeddings[0].numel() // k
    # sum_{i<j} |v_i - v_j|^2 = d sum_i |v_i - mean|^2: the mean over the pairs is twice the sample variance
    # over the positives, and no pair is ever formed.
    if not normalize:
        spread = embeddings - embeddings.mean(0)
        return 2 / (d - 1) * spread.square().sum() / (images * k)
    return 2 - _SumOfCosines.apply(embeddings) * (2 / (images * d * (d - 1)))


class _SumOfCosines(torch.autograd.Function):
    """cos(v_i, v_j), summed over ordered pairs i != j of d vectors and over images: (d, ..., k) to ().

    With u = v / |v| and s = sum_i u_i it is |s|^2 - sum_i |u_i|^2, without forming pairs. The gradient with
    respect to v_i is 2 (s - (s . u_i) u_i) / |v_i|: the part of s that is orthogonal to u_i. A vector of
    length 0 has cosine 0 with any other. By plain autograd the loss would take 5% to 11% longer.
    """

    @staticmethod
    def forward(ctx, v: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        scale = lengths.clamp_min(1e-12).reciprocal_()
        unit = v * scale
        total = unit.sum(0)
        ctx.save_for_backward(unit, scale, total)
        return total.square().sum() - lengths.mul_(scale).square_().sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        numerics.refuse_second_derivative("the cosine distance")
        unit, scale, total = ctx.saved_tensors
        along = (unit * total).sum(-1, keepdim=True)
        return torch.addcmul(total, unit, along, value=-1).mul_(2 * grad * scale)


@at_least_float32
def nt_xent_loss(embeddings: Tensor, temperature: float = 0.5) -> Tensor:
    """SimCLR's loss: find an image's other view among all embeddings of two views (Chen et al., 2020, Eq. 1).

    For each embedding, the cross-entropy of picking its positive from the 2n - 1 others by cosine similarity
    / temperature (> 0). n >= 2. For d > 2, as in the official code of W-MSE: negatives from the pair's two
    views only.
    """
    d, n, _ = _shape(embeddings, images=2)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}")
    unit = F.normalize(embeddings, dim=-1)
    similarities = torch.einsum("imk,jnk->ijmn", unit, unit) / temperature
    same = torch.eye(d, dtype=torch.bool, device=unit.device)[:, :, None, None]
    itself = same & torch.eye(n, dtype=torch.bool, device=unit.device)
    others = similarities.masked_fill(itself, -torch.inf).logsumexp(-1)  # (d, d, n): of each in each view
    own = others.diagonal().T[:, None]  # (d, 1, n): in its own view, without itself
    losses = torch.logaddexp(own, others) - similarities.diagonal(dim1=-2, dim2=-1)
    return losses.masked_fill(same[..., 0], 0.0).sum() / (d * (d - 1) * n)


@at_least_float32
def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """BYOL's loss: predict one view's target from another view (Grill et al., 2020, Eq. 2), 0 to 8.

    2 - 2 cos(prediction of one view, target of the other), both directions added. `predictions` and `targets`
    are both (d, n, k). No gradient reaches the targets.
    """
    d, n, _ = _shape(predictions, images=1)
    if predictions.shape != targets.shape:
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} differ in shape"
        )
    predicted, aimed = (F.normalize(tensor, dim=-1) for tensor in (predictions, targets.detach()))
    # Over all ordered pairs of different views: all pairs less those of a view with itself.
    cosines = (predicted.sum(0) * aimed.sum(0)).sum() - (predicted * aimed).sum()
    return 4 - 4 * cosines / (d * (d - 1) * n)


@at_least_float32
def barlow_twins_loss(embeddings: Tensor, redundancy_weight: float = 0.008) -> Tensor:
    """Barlow Twins: make the correlations of two views the identity (Zbontar et al., 2021, Eq. 1 and 2).

    sum_i (1 - C_ii)^2 + redundancy_weight * sum_{i != j} C_ij^2, C (k, k) being the correlations between
    dimensions of two views. The soft counterpart of whitening: a penalty in place of a constraint. 0.008 is
    the weight of CW-RGP's comparison on small images; 0.0051 was ImageNet's. n >= 2.
    """
    d, n, _ = _shape(embeddings, images=2)
    centred = embeddings - embeddings.mean(1, keepdim=True)
    variances = centred.square().mean(1, keepdim=True)
    standard = centred * (variances + 1e-5).rsqrt()  # BatchNorm's guard, which the original has as well
    first, second = torch.triu_indices(d, d, 1, device=standard.device)
    correlations = standard[first].mT @ standard[second] / n
    diagonal = correlations.diagonal(dim1=-2, dim2=-1)
    on, off = (1 - diagonal).square().sum(), correlations.square().sum() - diagonal.square().sum()
    return (on + redundancy_weight * off) / len(first)


@at_least_float32
def vicreg_loss(
    embeddings: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    """VICReg: positives close, dimensions spread and uncorrelated (Bardes et al., 2022, Sec. 4.1).

    invariance * mean squared difference of positives
    + variance * mean over dimensions and views of max(0, 1 - sqrt(var + 1e-4))
    + covariance * sum over two views of (sum_{i != j} Cov_ij^2) / k,

    as in the authors' code, which averages differences over dimensions and the variance terms over two views.
    CW-RGP's comparison adds the variance terms up: a weight of 50 here is their 25. n >= 2.
    """
    _, n, k = _shape(embeddings, images=2)
    centred = embeddings - embeddings.mean(1, keepdim=True)
    covariances = centred.mT @ centred / (n - 1)
    variances = covariances.diagonal(dim1=-2, dim2=-1)
    spread = F.relu(1 - (variances + 1e-4).sqrt()).mean()
    redundancy = (covariances.square().sum((1, 2)) - variances.square().sum(1)).mean() * 2 / k
    close = mse_loss(embeddings, normalize=False)
    return invariance * close + variance * spread + covariance * redundancy


@at_least_float32
def cw_rgp_loss(
    embeddings: Tensor,
    slice_size: int,
    groups: int = 4,
    iterations: int = 1,
    normalize: bool = True,
    whitening: str = "zca",
    generator: torch.Generator | None = None,
    eps: float = 0.0,
    whitening_steps: int = 15,
) -> Tensor:
    """CW-RGP: channel whitening with random group partition (Weng et al., NeurIPS 2022).

    The transpose of W-MSE: in a slice, images are the variables and channels (dimensions) the samples. Each
    embedding is centred over its k channels. The channels are dealt at random into groups, anew for each
    slice and view. In each group the covariance *between images* is made I. Then the channels are put back,
    and positives are compared.

    n is a multiple of `slice_size`, k of `groups`. A slice has fewer images than a group has channels,
    k / groups; half as many are advised. All else, and the errors raised, are as in `w_mse_loss`.
    """
    _, n, k = _shape(embeddings)
    numerics.check_channel_sizes(n, k, slice_size, groups, iterations)
    slices = _slices(embeddings, slice_size, iterations, generator)
    slices = slices - slices.mean(-1, keepdim=True)
    source = generator.device if generator is not None else slices.device
    dealt = torch.rand(*slices.shape[:-2], 1, k, generator=generator, device=source).to(slices.device)
    order = dealt.argsort(-1).expand_as(slices)
    channels = slices.gather(-1, order).mT.unflatten(-2, (groups, k // groups))
    # As in the authors' code, each image is centred over all its channels, and not again within a group.
    white = whiten(channels, whitening, eps, whitening_steps, centre=False).flatten(-3, -2).mT
    return mse_loss(white.gather(-1, order.argsort(-1)), normalize)


def intl_loss(
    embeddings: Tensor,
    steps: int = 4,
    trace_weight: float = 0.05,
    normalize: bool = True,
    between_images: bool = True,
) -> Tensor:
    """INTL: a few Newton-Schulz steps towards whitening, and a trace loss (Weng et al., ICLR 2024).

    All n images are one slice. Embeddings are whitened as far as `steps` go and compared. The trace loss is
    the sum of (variance - 1)^2 over the variables whitened, of both views; it pulls the variances that these
    steps left below 1 the rest of the way.

    `between_images`: whiten the covariance between images over channels, as in the authors' CIFAR runs
    (k > n); False: the covariance of dimensions over images (n > k). `steps` and `normalize` are as in
    `whiten(..., "newton-schulz")` and in `mse_loss`.
    """
    _shape(embeddings)
    samples = embeddings.mT if between_images else embeddings
    white = whiten(samples, "newton-schulz", steps=steps)
    variances = white.square().sum(1) / (white.shape[1] - 1)
    trace = 2 * (variances - 1).square().sum(1).mean()
    return mse_loss(white.mT if between_images else white, normalize) + trace_weight * trace


@at_least_float32
def lejepa_loss(
    embeddings: Tensor, weight: float = 0.02, directions: int = 64, generator: torch.Generator | None = None
) -> Tensor:
    """LeJEPA, a small version: positives close, embeddings Gaussian (Balestriero and LeCun, 2025).

    `(1 - weight)` times the mean squared distance of positives from their mean, plus `weight` (0 to 1) times
    SIGReg: the mean of `epps_pulley` over views and random directions. The authors' minimal code does the
    same with 256 directions. They are drawn anew in each call, from `generator`. n >= 2.
    """
    _, _, k = _shape(embeddings, images=2)
    if not 0 <= weight <= 1 or directions < 1:
        raise ValueError(f"weight must be 0 to 1, directions 1 or more; got {weight} and {directions}")
    source = generator.device if generator is not None else embeddings.device
    drawn = torch.randn(k, directions, generator=generator, device=source).to(embeddings)
    close = (embeddings - embeddings.mean(0)).square().mean()
    return (1 - weight) * close + weight * epps_pulley(embeddings @ F.normalize(drawn, dim=0)).mean()


def epps_pulley(samples: Tensor) -> Tensor:
    """Test statistic of m columns of n samples against a standard Gaussian: (..., n, m) to (..., m), >= 0.

    `n * integral of |mean of exp(i t x) - exp(-t^2 / 2)|^2 * exp(-t^2 / 2) dt` (Epps and Pulley, 1983).
    Gaussian samples score about 1.06 on average, for every n; samples that are all 0 score 0.41 n.
    """
    t = torch.linspace(0, 5, 17, dtype=samples.dtype, device=samples.device)  # even in t: half the axis
    gaussian, angles = torch.exp(-t.square() / 2), samples[..., None] * t
    gap = (angles.cos().mean(-3) - gaussian).square() + angles.sin().mean(-3).square()
    return 2 * samples.shape[-2] * torch.trapezoid(gap * gaussian, t)


def _shape(embeddings: Tensor, images: int = 0) -> tuple[int, int, int]:
    """(d, n, k) of embeddings with d >= 2 and, if `images` is given, at least so many; else ValueError."""
    shape = tuple(embeddings.shape)
    if len(shape) != 3:
        raise ValueError(f"embeddings must be (d, n, k): d views of n images; got shape {shape}")
    numerics.check_pairs(shape[0])
    if images and (shape[1] < images or not shape[2]):
        raise ValueError(
            f"embeddings of shape {shape}: at least {images} image(s) and 1 dimension are needed"
        )
    return shape
