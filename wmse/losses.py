"""The W-MSE loss, the loss that it mends, and those it is compared with: pure functions of embeddings.

Embeddings are (d, n, k): d positives (views) of n images, k dimensions. With `whitening.py` the first two are
the method of the paper. Every loss of two views is averaged over all d(d-1)/2 pairs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wmse.numerics import at_least_float32, refuse_second_derivative
from wmse.whitening import whiten


@at_least_float32
def mse_loss(embeddings: Tensor, normalize: bool = True) -> Tensor:
    """Mean distance between the positives of an image, over all d(d-1)/2 pairs (paper, Eq. 1 and 2).

    By itself it has a trivial minimum: embeddings that are all the same. It is the collapse baseline.

    Args:
        embeddings: (d, ..., k) floating point, d >= 2.
        normalize: True: 2 - 2 cos(v_i, v_j), the squared distance of the vectors on the unit sphere, the
            paper's default. False: the squared distance divided by k, the paper's Euclidean variant.

    Returns:
        A scalar: the mean over pairs and images (and, if not `normalize`, dimensions).

    Raises:
        ValueError: d < 2, no images, no dimensions.
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
    return 2 - sum_of_cosines(embeddings) * (2 / (images * d * (d - 1)))


def w_mse_loss(
    embeddings: Tensor,
    slice_size: int,
    iterations: int = 1,
    normalize: bool = True,
    whitening: str = "cholesky",
    generator: torch.Generator | None = None,
    eps: float = 0.0,
    whitening_iterations: int = 15,
) -> Tensor:
    """W-MSE: the mean distance between *whitened* positives (paper, Sec. 3, Eq. 6, and "batch slicing").

    A random permutation of the images, shared by the views, cuts the batch into slices of `slice_size`
    images. Each slice of each view is whitened with its own mean and covariance; then positives are compared
    as in `mse_loss`. Whitened embeddings cannot collapse, so no negatives are needed.

    Args:
        embeddings: (d, n, k) floating point, d >= 2; n a multiple of `slice_size`.
        slice_size: images per slice; more than k, and 2k at least is advised.
        iterations: permutations to average over (`w_iter` of the official code); more lower the variance.
        normalize: 2 - 2 cos if True, the squared distance divided by k if False.
        whitening: a method of `wmse.whitening.whiten`.
        generator: source of the permutations; the global one of the embeddings' device if None.
        eps, whitening_iterations: shrinkage, and steps of "newton-schulz", as in `whiten`.

    Returns:
        A scalar of at least float32.

    Raises:
        ValueError: shapes that do not fit, naming the nearest that do; bad values, as in `whiten`.
        SingularCovarianceError: as in `whiten`; the slice is named as (view, iteration, slice).
    """
    d, n, k = _shape(embeddings)
    check_sizes(d, n, k, slice_size, iterations)
    slices = _slices(embeddings, slice_size, iterations, generator)
    return mse_loss(whiten(slices, whitening, eps, whitening_iterations), normalize)


def _slices(
    embeddings: Tensor, slice_size: int, iterations: int, generator: torch.Generator | None
) -> Tensor:
    """Permutations, shared by the views, cut up: (d, iterations, n / slice_size, slice_size, k)."""
    d, n, k = embeddings.shape
    device = embeddings.device
    source = generator.device if generator is not None else device
    permutations = [torch.randperm(n, generator=generator, device=source) for _ in range(iterations)]
    orders = torch.stack(permutations).to(device, non_blocking=True)
    return permuted(embeddings, orders).view(d, iterations, n // slice_size, slice_size, k)


@at_least_float32
def nt_xent_loss(embeddings: Tensor, temperature: float = 0.5) -> Tensor:
    """SimCLR's loss: find an image's other view among all embeddings of two views (Chen et al., 2020, Eq. 1).

    For each embedding, the cross-entropy of picking its positive from the 2n - 1 others by cosine similarity
    / temperature. For d > 2, as in the official code of W-MSE: negatives from the pair's two views only.

    Args:
        embeddings: (d, n, k) floating point, d >= 2, n >= 2.

    Returns:
        A scalar of at least float32, the mean over pairs and their 2n embeddings.

    Raises:
        ValueError: other shapes, or a temperature that is not positive.
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

    2 - 2 cos(prediction of one view, target of the other), both directions added. No gradient reaches the
    targets.

    Args:
        predictions, targets: (d, n, k) floating point, d >= 2.

    Returns:
        A scalar of at least float32, the mean over pairs and images.

    Raises:
        ValueError: shapes that differ, or are not (d, n, k) with d >= 2.
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
    the weight of CW-RGP's comparison on small images; 0.0051 was ImageNet's.

    Args:
        embeddings: (d, n, k) floating point, d >= 2, n >= 2.

    Returns:
        A scalar of at least float32, the mean over pairs of views.

    Raises:
        ValueError: other shapes.
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
    CW-RGP's comparison adds the latter up: a variance weight of 50 is theirs of 25.

    Args:
        embeddings: (d, n, k) floating point, d >= 2, n >= 2.

    Returns:
        A scalar of at least float32, the mean over pairs of views.

    Raises:
        ValueError: other shapes.
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
    whitening_iterations: int = 15,
) -> Tensor:
    """CW-RGP: channel whitening with random group partition (Weng et al., NeurIPS 2022).

    W-MSE turned round: in a slice, images are the variables and channels (dimensions) the samples. Each
    embedding is centred over its k channels; these are dealt at random into groups, anew for each slice and
    view. In each the covariance *between images* is made I; channels are put back, and positives compared.

    Args:
        embeddings: (d, n, k) floating point, d >= 2; n a multiple of `slice_size`, k of `groups`.
        slice_size: images per slice; fewer than the k / groups channels of a group, half of them is advised.
        iterations, normalize, generator: as in `w_mse_loss`.
        whitening, eps, whitening_iterations: as in `whiten`.

    Returns:
        A scalar of at least float32.

    Raises:
        ValueError, SingularCovarianceError: as `w_mse_loss`.
    """
    d, n, k = _shape(embeddings)
    check_channel_sizes(d, n, k, slice_size, groups, iterations)
    slices = _slices(embeddings, slice_size, iterations, generator)
    slices = slices - slices.mean(-1, keepdim=True)
    source = generator.device if generator is not None else slices.device
    dealt = torch.rand(*slices.shape[:-2], 1, k, generator=generator, device=source).to(slices.device)
    order = dealt.argsort(-1).expand_as(slices)
    channels = slices.gather(-1, order).mT.unflatten(-2, (groups, k // groups))
    # Centred over all channels of an image, not once more over a group's: as in the authors' code.
    white = whiten(channels, whitening, eps, whitening_iterations, centre=False).flatten(-3, -2).mT
    return mse_loss(white.gather(-1, order.argsort(-1)), normalize)


def intl_loss(
    embeddings: Tensor,
    iterations: int = 4,
    trace_weight: float = 0.05,
    normalize: bool = True,
    between_images: bool = True,
) -> Tensor:
    """INTL: a few Newton-Schulz steps towards whitening, and a trace loss (Weng et al., ICLR 2024).

    Embeddings are whitened as far as `iterations` steps go and compared; the trace loss, the sum over what
    was whitened of (variance - 1)^2, of both views, asks for the rest.

    Args:
        embeddings: (d, n, k) floating point, d >= 2: one slice of all n images.
        iterations, normalize: of `whiten(..., "newton-schulz")`, and as in `mse_loss`.
        between_images: whiten the covariance between images over channels, as in the authors' CIFAR runs
            (k > n); False: the covariance of dimensions over images (n > k).

    Returns:
        A scalar of at least float32, the mean over pairs of views.

    Raises:
        ValueError: shapes that do not fit, and bad values, as in `whiten`.
    """
    _shape(embeddings)
    samples = embeddings.mT if between_images else embeddings
    white = whiten(samples, "newton-schulz", iterations=iterations)
    variances = white.square().sum(1) / (white.shape[1] - 1)
    trace = 2 * (variances - 1).square().sum(1).mean()
    return mse_loss(white.mT if between_images else white, normalize) + trace_weight * trace


def _shape(embeddings: Tensor, images: int = 0) -> tuple[int, int, int]:
    """(d, n, k) of embeddings with d >= 2; ValueError for others, or where there are fewer `images`."""
    shape = tuple(embeddings.shape)
    if len(shape) != 3:
        raise ValueError(f"embeddings must be (d, n, k): d views of n images; got shape {shape}")
    check_pairs(shape[0])
    if images and (shape[1] < images or not shape[2]):
        raise ValueError(
            f"embeddings of shape {shape}: at least {images} image(s) and 1 dimension are needed"
        )
    return shape


def check_sizes(d: int, n: int, k: int, slice_size: int, iterations: int = 1) -> None:
    """Raise ValueError for sizes that `w_mse_loss` cannot work with, naming the nearest that do."""
    if slice_size <= k:
        raise ValueError(
            f"slice_size = {slice_size} is not more than k = {k}: a slice's covariance would be singular. "
            f"The least that works is {k + 1}; 2k = {2 * k} is advised."
        )
    _check_slices(d, n, slice_size, iterations, range(k + 1, n + 1))


def check_channel_sizes(d: int, n: int, k: int, slice_size: int, groups: int, iterations: int = 1) -> None:
    """Raise ValueError for sizes that `cw_rgp_loss` cannot work with, naming the nearest that do."""
    if groups < 1 or k % groups:
        nearest = _around([size for size in range(1, k + 1) if k % size == 0], groups)
        raise ValueError(
            f"k = {k} channels cannot be dealt into {groups} groups. Nearest that work: {nearest}."
        )
    if k // groups <= slice_size:
        raise ValueError(
            f"a group of k / groups = {k // groups} channels is not larger than slice_size = {slice_size}: "
            f"its covariance between images would be singular. Use slices of {k // groups - 1} images at "
            f"most ({k // groups // 2} is advised), fewer groups or a larger k."
        )
    _check_slices(d, n, slice_size, iterations, range(1, min(n, k // groups - 1) + 1))


def check_pairs(d: int) -> None:
    """Raise ValueError for fewer than two views."""
    if d < 2:
        raise ValueError(f"d = {d} positives make no pair: at least 2 views of an image are needed")


def _check_slices(d: int, n: int, slice_size: int, iterations: int, allowed: range) -> None:
    check_pairs(d)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    if slice_size < 1 or n == 0 or n % slice_size:
        batches = _around(range(slice_size, n + 2 * slice_size, slice_size), n) if slice_size > 0 else "none"
        slices = _around([size for size in allowed if n % size == 0], slice_size)
        raise ValueError(
            f"n = {n} images are not a multiple of slice_size = {slice_size}. "
            f"Nearest batches that work: {batches} images. Nearest slice sizes for n = {n}: {slices}."
        )


def _around(sizes: Sequence[int], size: int) -> str:
    """The nearest of ascending `sizes` on either side of `size`, for a message."""
    nearest = [*[s for s in sizes if s < size][-1:], *[s for s in sizes if s > size][:1]]
    return " or ".join(map(str, nearest)) or "none"


def sum_of_cosines(v: Tensor) -> Tensor:
    """cos(v_i, v_j), summed over ordered pairs i != j of d vectors and over images: (d, ..., k) to ().

    With u = v / |v| and s = sum_i u_i it is |s|^2 - sum_i |u_i|^2: no pair is ever formed. Its gradient with
    respect to v_i is 2 (s - (s . u_i) u_i) / |v_i|, what of s is orthogonal to u_i. A vector of length 0 has
    cosine 0 with any other.
    """
    return _SumOfCosines.apply(v)


def permuted(x: Tensor, orders: Tensor) -> Tensor:
    """x (d, n, k) with its rows in each of w orders, int64 (w, n), each a permutation: (d, w, n, k)."""
    return _Permuted.apply(x, orders)


class _Permuted(torch.autograd.Function):
    """Its gradient gathers by the inverse permutations what autograd would scatter."""

    @staticmethod
    def forward(ctx, x: Tensor, orders: Tensor) -> Tensor:
        ctx.save_for_backward(orders)
        return x.index_select(1, orders.flatten()).unflatten(1, orders.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        places = ctx.saved_tensors[0].argsort(1)
        if len(places) == 1:
            return grad[:, 0].index_select(1, places[0]), None
        gathered = [part.index_select(1, place) for part, place in zip(grad.unbind(1), places, strict=True)]
        return torch.stack(gathered).sum(0), None


class _SumOfCosines(torch.autograd.Function):
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
        refuse_second_derivative("the cosine distance")
        unit, scale, total = ctx.saved_tensors
        along = (unit * total).sum(-1, keepdim=True)
        return torch.addcmul(total, unit, along, value=-1).mul_(2 * grad * scale)
