"""What whitening refuses, and how it says so: bad arguments at once, bad values as early as costs nothing."""

import math

import torch
from torch import Tensor

from wmse.deferred import require


class SingularCovarianceError(ValueError):
    """The covariance of a slice has no usable factorisation: the slice spans fewer than k dimensions."""


def check_arguments(x: Tensor, method: str, eps: float, iterations: int, methods: list[str]) -> None:
    """Everything that can be said without looking at the values of `x`."""
    if method not in methods:
        raise ValueError(f"unknown whitening method {method!r}; there are: {', '.join(methods)}")
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], a share of the identity mixed into Sigma; got {eps}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    if x.dim() < 2:
        raise ValueError(f"x must be (..., n, k), n samples of k dimensions; got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point; got {x.dtype}: convert it with x.float()")
    n, k = x.shape[-2:]
    if n == 0 or k == 0:
        raise ValueError(f"x has no samples or no dimensions: n = {n}, k = {k}")
    if n <= k:
        raise ValueError(
            f"n = {n} samples of k = {k} dimensions: the covariance of n samples has rank n - 1 at most and "
            f"cannot be inverted. Use n >= 2k = {2 * k} samples a slice (n > k is the least) or a smaller k."
        )


def gate(unexplained: Tensor, x: Tensor, tolerance: float, method: str) -> Tensor:
    """1 for each slice whose `unexplained` is above `tolerance`, NaN for the others, which are refused.

    Args:
        unexplained: (...) in [0, 1]; NaN counts as bad.
        x: (..., n, k), looked at only to explain a failure.
    """
    x = x.detach()
    if torch.compiler.is_compiling():
        return torch.ops.wmse.gate(unexplained, x, tolerance, method)
    ok = unexplained > tolerance
    require(ok, lambda flags: _explain(flags, unexplained, x, tolerance, method))
    return torch.where(ok, 1.0, math.nan).to(x.dtype)


@torch.library.custom_op("wmse::gate", mutates_args=())
def _compiled_gate(unexplained: Tensor, x: Tensor, tolerance: float, method: str) -> Tensor:
    """`gate` as one opaque node, so that a compiled graph keeps the check and does not break at it."""
    return gate(unexplained, x, tolerance, method)


@_compiled_gate.register_fake
def _(unexplained: Tensor, x: Tensor, tolerance: float, method: str) -> Tensor:
    return torch.empty_like(unexplained)


def _explain(ok: Tensor, unexplained: Tensor, x: Tensor, tolerance: float, method: str) -> ValueError:
    """The error for the first slice that `ok` (...) marks as bad."""
    n, k = x.shape[-2:]
    index = tuple((~ok).nonzero()[0].tolist())
    where = f"slice {index if len(index) != 1 else index[0]}" if index else "the slice"
    where += f" ({int((~ok).sum())} of {ok.numel()} slices fail; n = {n} samples, k = {k} dimensions)"
    late = " (found by a deferred check: the slice is of a call before this one)" if x.is_cuda else ""
    if not bool(x[index].isfinite().all()):
        return ValueError(f"x holds NaN or infinity in {where}{late}: look for them where x is computed.")
    other = " or method='qr', which does not square the condition number" if method == "cholesky" else ""
    return SingularCovarianceError(
        f"the covariance of {where} cannot be factorised{late}: the other dimensions explain all but "
        f"{float(unexplained[index]):.1e} of one; at least {tolerance:.1e} must be left. Either the samples "
        f"span fewer than k dimensions (collapse, duplicates, a constant dimension), or n is too close to k, "
        f"or rounding hides their spread, so far are they from the origin. "
        f"Ways out: n >= 2k = {2 * k} samples a slice, a smaller k, eps > 0 (for example 1e-3){other}."
    )
