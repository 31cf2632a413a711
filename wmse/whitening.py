"""Whitening: a linear map that gives a slice of embeddings zero mean and covariance I.

This is the constraint at the heart of W-MSE (Ermolov et al., ICML 2021, Sec. 3). With the sample mean mu and
covariance Sigma of a slice, z = W (v - mu) is white for every W with W^T W = Sigma^-1. Any two such matrices
differ by a rotation; the paper takes W = L^-1 from the Cholesky factorisation Sigma = L L^T.

Rows are samples throughout: X is (n, k), Sigma = Xc^T Xc / (n - 1), and Z = Xc W^T.
"""

import math

import torch
from torch import Tensor

from wmse.deferred import require


class SingularCovarianceError(ValueError):
    """The covariance of a slice has no usable factorisation: the slice spans fewer than k dimensions."""


def whiten(x: Tensor, method: str = "cholesky", eps: float = 0.0) -> Tensor:
    """Whiten every slice of `x` with its own mean and covariance (paper, Sec. 3, Eq. 3 and after).

    Args:
        x: (..., n, k) floating point: n samples of k dimensions; each leading index is a slice of its own.
            n > k is required, n >= 2k advised: the fewer the samples, the more the whitening matrix is noise.
        method: "cholesky", the paper's; or "qr", the same result without squaring the condition number.
        eps: shrinkage in [0, 1]: (1 - eps) Sigma + eps I is factorised in place of Sigma, as in the official
            code. With eps > 0 the result is not quite white, by design.

    Returns:
        The shape of `x`, float64 for float64 input and float32 for everything else, also under autocast.
        With eps = 0 each slice has mean 0 and covariance I (divisor n - 1).

    Raises:
        ValueError: fewer than two dimensions, a dtype that is not floating point, n or k of 0, n <= k,
            NaN or infinity in `x`, eps outside [0, 1], an unknown method.
        SingularCovarianceError: a covariance that cannot be factorised to working precision.

    What depends on the values is checked at once on the CPU. On CUDA that would cost a host sync, so the
    error comes up to `wmse.deferred.MAX_PENDING` calls late, and a failed slice is NaN until then.
    """
    _check_arguments(x, method, eps)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        return WHITENING[method](x, eps)


def _cholesky(x: Tensor, eps: float) -> Tensor:
    return _TriangularWhitening.apply(x, eps, "cholesky")[0]


def _qr(x: Tensor, eps: float) -> Tensor:
    return _TriangularWhitening.apply(x, eps, "qr")[0]


class _TriangularWhitening(torch.autograd.Function):
    """Z = Xc L^-T with L L^T = (1 - eps) Sigma + eps I, and its gradient in closed form.

    With A = L^-1 d(Sigma) L^-T, the factor moves by dL = L phi(A), where phi takes the lower triangle and
    halves the diagonal (Murray, arXiv 1602.07527). Hence

        dZ = dXc L^-T - Z phi(A)^T.

    For a loss l with G = dl/dZ and M = G^T Z, the second term contributes -<M, phi(A)> = -<S, A> with
    S = phi(M), and, A being symmetric, -<(S + S^T) / 2, A>. Now d(Sigma) = (1 - eps) (dXc^T Xc + Xc^T dXc) /
    (n - 1) makes A the sum of B and B^T with B = (1 - eps) / (n - 1) L^-1 dXc^T Z. Collecting what
    multiplies dXc, and subtracting column means because Xc is centred (C):

        dl/dX = C [(G - (1 - eps) / (n - 1) Z (S + S^T)) L^-1].

    Three products of the size of X and no solve: fewer than autograd needs for the same chain. How L was
    found does not matter, so Cholesky and QR share it.
    """

    @staticmethod
    def forward(x: Tensor, eps: float, method: str) -> tuple[Tensor, Tensor]:
        centred = x - x.mean(-2, keepdim=True)
        whitening_matrix, unexplained, tolerance, q = FACTORISATIONS[method](centred, eps)
        # What rounding left of the mean must be small beside the spread. It is not where a dimension is
        # constant but its mean was rounded: that residue has a variance, and would be whitened to 1.
        offset = (centred.mean(-2, keepdim=True) @ whitening_matrix.mT).abs().amax((-1, -2))
        unexplained = torch.where(offset < MAX_OFFSET, unexplained, 0.0)
        gate = _gate(unexplained, x, tolerance, method)[..., None, None]
        whitening_matrix = whitening_matrix * gate
        return centred @ whitening_matrix.mT if q is None else q * gate, whitening_matrix

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.eps = inputs[1]
        ctx.save_for_backward(*output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad: Tensor | None, _) -> tuple[Tensor | None, None, None]:
        if grad is None:
            return None, None, None
        refuse_second_derivative("whiten")
        z, whitening_matrix = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            lower = (grad.mT @ z).tril()
            symmetric = lower + lower.mT  # S + S^T but for the diagonal, which stands here twice
            symmetric.diagonal(dim1=-2, dim2=-1).mul_(0.5)
            symmetric.mul_((1 - ctx.eps) / (z.shape[-2] - 1))
            rows = [tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (grad, z, symmetric)]
            grad_x = torch.baddbmm(*rows, alpha=-1).view_as(z) @ whitening_matrix
        return grad_x.sub_(grad_x.mean(-2, keepdim=True)), None, None


def refuse_second_derivative(name: str) -> None:
    """For a closed-form backward: RuntimeError where autograd would record it, as it would get it wrong."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(f"{name} has no second derivative: call autograd without create_graph=True")


def _factorise_cholesky(centred: Tensor, eps: float) -> tuple[Tensor, Tensor, float, None]:
    """L^-1 (..., k, k), the least share of variance left unexplained (...), its lower limit, and no Q."""
    n, k = centred.shape[-2:]
    covariance = (centred.mT @ centred).mul_((1 - eps) / (n - 1))
    if eps:
        covariance.diagonal(dim1=-2, dim2=-1).add_(eps)
    factor, info = torch.linalg.cholesky_ex(covariance)
    identity = torch.eye(k, dtype=centred.dtype, device=centred.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False, left=False)
    # 1 / ((Sigma^-1)_jj Sigma_jj) is the share of dimension j's variance that the other dimensions do not
    # explain. Below about k times the machine's epsilon it is rounding noise, and so is W: it was below
    # 1.2 k eps for each of 12,772 singular slices that factorised all the same. (L_jj^2 / Sigma_jj, what the
    # dimensions before j do not explain, is cheaper but passed 2.7% of them at 100 k eps: where a dependence
    # has little of dimension j in it, the noise in L_jj looks large.)
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    unexplained = 1 / (inverse.square().sum(-2) * variances).amax(-1)
    return inverse, torch.where(info == 0, unexplained, 0.0), 20 * k * torch.finfo(centred.dtype).eps, None


def _factorise_qr(centred: Tensor, eps: float) -> tuple[Tensor, Tensor, float, Tensor | None]:
    """As `_factorise_cholesky`, from Xc = Q R: with R's diagonal made positive, L = R^T / sqrt(n - 1).

    With eps, R comes from [sqrt(1 - eps) Xc; sqrt(eps (n - 1)) I], whose Gram matrix is the shrunken one.
    Without, sqrt(n - 1) Q is the whitened slice, and comes last.
    """
    n, k = centred.shape[-2:]
    identity = torch.eye(k, dtype=centred.dtype, device=centred.device)
    stacked = centred
    if eps:
        ridge = (math.sqrt(eps * (n - 1)) * identity).expand(*centred.shape[:-2], k, k)
        stacked = torch.cat([math.sqrt(1 - eps) * centred, ridge], dim=-2)
    q, r = torch.linalg.qr(stacked)
    inverse = torch.linalg.solve_triangular(r, identity, upper=True)
    # The share of each column that *all* the others do not explain, as a length. Not squared, so it may be
    # far smaller than Cholesky's; and by all, since R_jj alone can hide a dependence by many times its size.
    unexplained = 1 / (torch.linalg.vector_norm(inverse, dim=-1) * torch.linalg.vector_norm(r, dim=-2)).amax(
        -1
    )
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r.dtype)[..., None, :] * math.sqrt(
        n - 1
    )
    return (inverse * signs).mT, unexplained, 10 * k * torch.finfo(r.dtype).eps, None if eps else q * signs


FACTORISATIONS = {"cholesky": _factorise_cholesky, "qr": _factorise_qr}
MAX_OFFSET = 0.03  # of a whitened slice's mean, in standard deviations: 1e-3 in the covariance
WHITENING = {"cholesky": _cholesky, "qr": _qr}


def _check_arguments(x: Tensor, method: str, eps: float) -> None:
    """Everything that can be said without looking at the values of `x`."""
    if method not in WHITENING:
        raise ValueError(f"unknown whitening method {method!r}; there are: {', '.join(WHITENING)}")
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], a share of the identity mixed into Sigma; got {eps}")
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


def _gate(unexplained: Tensor, x: Tensor, tolerance: float, method: str) -> Tensor:
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
    """`_gate` as one opaque node, so that a compiled graph keeps the check and does not break at it."""
    return _gate(unexplained, x, tolerance, method)


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
