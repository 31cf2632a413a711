"""The W-MSE loss, and the loss that it mends: pure functions of embeddings.

Embeddings are (d, n, k): d positives (views) of each of n images, k dimensions. Together with `whitening.py`
this is the method of the paper.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from wmse.whitening import refuse_second_derivative, whiten


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
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    d, k = len(embeddings), embeddings.shape[-1]
    images = embeddings[0].numel() // k
    # sum_{i<j} |v_i - v_j|^2 = d sum_i |v_i - mean|^2: the mean over the pairs is twice the sample variance
    # over the positives, and no pair is ever formed.
    if not normalize:
        spread = embeddings - embeddings.mean(0)
        return 2 / (d - 1) * spread.square().sum() / (images * k)
    # For unit vectors that sum is d^2 - |sum_i v_i|^2.
    return 2 / (d - 1) * (d - _UnitSum.apply(embeddings)[0] / (images * d))


class _UnitSum(torch.autograd.Function):
    """The squared length of the sum over d views of unit vectors, summed over images: sum |sum_i u_i|^2.

    With u = v / |v| and s = sum_i u_i, the gradient with respect to v_i is 2 (s - (s . u_i) u_i) / |v_i|:
    what of s is orthogonal to u_i. Written out because autograd passes over memory twice as often.
    """

    @staticmethod
    def forward(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale = torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min_(1e-12).reciprocal_()
        unit = v * scale
        total = unit.sum(0)
        return total.square().sum(), unit, scale, total

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_) -> Tensor | None:
        if grad is None:
            return None
        refuse_second_derivative("the cosine distance")
        unit, scale, total = ctx.saved_tensors
        along = (unit * total).sum(-1, keepdim=True)
        return torch.addcmul(total, unit, along, value=-1).mul_(2 * grad * scale)


def w_mse_loss(
    embeddings: Tensor,
    slice_size: int,
    iterations: int = 1,
    normalize: bool = True,
    whitening: str = "cholesky",
    generator: torch.Generator | None = None,
    eps: float = 0.0,
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
        eps: shrinkage of the covariance, as in `whiten`.

    Returns:
        A scalar of at least float32.

    Raises:
        ValueError: shapes that do not fit, naming the nearest that do; bad values, as in `whiten`.
        SingularCovarianceError: as in `whiten`; the slice is named as (view, iteration, slice).
    """
    if embeddings.dim() != 3:
        raise ValueError(
            f"embeddings must be (d, n, k): d views of n images; got shape {tuple(embeddings.shape)}"
        )
    d, n, k = embeddings.shape
    check_sizes(d, n, k, slice_size, iterations)
    device = embeddings.device
    source = generator.device if generator is not None else device
    permutations = [torch.randperm(n, generator=generator, device=source) for _ in range(iterations)]
    order = torch.cat(permutations).to(device, non_blocking=True)
    slices = embeddings.index_select(1, order).view(d, iterations, n // slice_size, slice_size, k)
    return mse_loss(whiten(slices, whitening, eps), normalize)


def check_sizes(d: int, n: int, k: int, slice_size: int, iterations: int = 1) -> None:
    """Raise ValueError for sizes that `w_mse_loss` cannot work with, naming the nearest that do."""
    if d < 2:
        raise ValueError(f"d = {d} positives make no pair: at least 2 views of an image are needed")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    if slice_size <= k:
        raise ValueError(
            f"slice_size = {slice_size} is not more than k = {k}: a slice's covariance would be singular. "
            f"The least that works is {k + 1}; 2k = {2 * k} is advised."
        )
    if n == 0 or n % slice_size:
        batches = _around(range(slice_size, n + 2 * slice_size, slice_size), n)
        slices = _around([size for size in range(k + 1, n + 1) if n % size == 0], slice_size)
        raise ValueError(
            f"n = {n} images are not a multiple of slice_size = {slice_size}. "
            f"Nearest batches that work: {batches} images. Nearest slice sizes for n = {n}: {slices}."
        )


def _around(sizes: Sequence[int], size: int) -> str:
    """The nearest of ascending `sizes` on either side of `size`, for a message."""
    nearest = [*[s for s in sizes if s < size][-1:], *[s for s in sizes if s > size][:1]]
    return " or ".join(map(str, nearest)) or "none"
