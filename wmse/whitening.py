"""Whitening: a linear map that gives a slice of embeddings zero mean and covariance I.

This is the constraint at the heart of W-MSE (Ermolov et al., ICML 2021, Sec. 3). With the sample mean mu and
covariance Sigma of a slice, z = W (v - mu) is white for every W with W^T W = Sigma^-1. Any two such matrices
differ by a rotation; the paper takes W = L^-1 from the Cholesky factorisation Sigma = L L^T.

Rows are samples throughout: X is (n, k), Sigma = Xc^T Xc / (n - 1), and Z = Xc W^T.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wmse.numerics import deferred, float32_products, refuse_second_derivative, require


def whiten(
    x: Tensor, method: str = "cholesky", eps: float = 0.0, steps: int = 15, centre: bool = True
) -> Tensor:
    """Whiten every slice of `x` with its own mean and covariance (paper, Sec. 3: the whitening transform).

    Args:
        x: (..., n, k) floating point: n samples of k dimensions; each leading index is a slice of its own.
            n > k is required, n >= 2k advised: the fewer the samples, the more the whitening matrix is noise.
        method: which W with W^T W = Sigma^-1.
            "cholesky": lower triangular, the paper's.
            "qr": the same without squaring the condition number.
            "zca": symmetric, Sigma^-1/2, the one that moves the samples least.
            "pca": onto the principal axes, largest variance first, the largest entry of each axis positive.
            "newton-schulz": towards "zca" by products of matrices alone (IterNorm: Huang et al., CVPR 2019).
        eps: shrinkage in [0, 1]: (1 - eps) Sigma + eps I is factorised in place of Sigma, as in the official
            code. With eps > 0 the result is not quite white, by design.
        steps: of "newton-schulz", at least 1. Each multiplies a direction's standard deviation by 1.5 at
            most; 15 whiten a slice of Gaussian noise with n = 2k, k <= 128.
        centre: False if `x` is centred already, in whatever sense: then Sigma is x^T x / (n - 1).

    Returns:
        The shape of `x`, float64 for float64 input and float32 for everything else, also under autocast.
        With eps = 0 each slice has mean 0 and covariance I (divisor n - 1).

    Raises:
        ValueError: a bad shape or dtype, n <= k, NaN or infinity in `x`, an argument out of its range.
        SingularCovarianceError: a covariance that cannot be factorised to working precision.

    The host looks at the values at once, and so waits for a GPU. Inside `with wmse.numerics.Checks():` it
    does not wait: a refused slice is NaN, and `look` raises the error. "zca" and "pca" wait for a GPU in any
    case, because the eigenvalue solver (eigh) does.
    """
    _check_arguments(x, method, eps, steps)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    with float32_products(x.device):
        if method == "newton-schulz":
            return _newton_schulz(x, eps, steps, centre)
        return _Whitening.apply(x, eps, method, centre)


class _Factorisation(NamedTuple):
    """A whitening matrix, how far it can be trusted, and what its gradient needs."""

    matrix: Tensor  # W, (..., k, k)
    unexplained: Tensor  # (...) in [0, 1]: smallest unexplained fraction of any direction
    tolerance: float  # at or below it, that fraction may be rounding error, and the slice is refused
    whitened: Tensor | None = None  # (..., n, k): Z, if the factorisation already yields it (QR)
    basis: Tensor | None = None  # (..., k, k): eigenvectors in columns (ZCA)
    weights: Tensor | None = None  # (..., k, k): phi(A) = weights * A; None: phi takes the lower triangle


def _cholesky(centred: Tensor, eps: float) -> _Factorisation:
    n, k = centred.shape[-2:]
    covariance = _covariance(centred, eps)
    factor, info = torch.linalg.cholesky_ex(covariance)
    inverse = _triangular_inverse(factor)
    # 1 / ((Sigma^-1)_jj Sigma_jj) is the fraction of dimension j's variance that the other dimensions do not
    # explain. Below about k times the machine's epsilon this fraction and W are rounding noise: it was below
    # 1.2 k eps for each of 12,772 singular slices that factorised all the same. (L_jj^2 / Sigma_jj, the
    # fraction that the dimensions before j do not explain, is cheaper but passed 2.7% of them at 100 k eps.)
    inflation = (inverse.square().sum(-2) * covariance.diagonal(dim1=-2, dim2=-1)).amax(-1)
    unexplained = torch.where(info == 0, 1 / inflation, 0.0)
    return _Factorisation(inverse, unexplained, 20 * k * torch.finfo(centred.dtype).eps)


def _triangular_inverse(factor: Tensor) -> Tensor:
    """L^-1 of lower triangular L (..., k, k); by blocks on CUDA, which solves few large systems in turn."""
    k = factor.shape[-1]
    if factor.is_cuda and k % 2 == 0:
        return _inverse_by_blocks(factor)
    identity = torch.eye(k, dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False, left=False)


def _inverse_by_blocks(factor: Tensor) -> Tensor:
    """L = [[A, 0], [B, C]], k even: A and C are inverted in one batch, and below them stands -C^-1 B A^-1."""
    half = factor.shape[-1] // 2
    diagonal = torch.stack([factor[..., :half, :half], factor[..., half:, half:]])
    identity = torch.eye(half, dtype=factor.dtype, device=factor.device)
    first, second = torch.linalg.solve_triangular(diagonal, identity, upper=False, left=False)
    below = -(second @ factor[..., half:, :half] @ first)
    return torch.cat([F.pad(first, (0, half)), torch.cat([below, second], -1)], -2)


def _qr(centred: Tensor, eps: float) -> _Factorisation:
    """From Xc = Q R: with R's diagonal made positive, L = R^T / sqrt(n - 1), and sqrt(n - 1) Q is whitened.

    With eps, R comes from [sqrt(1 - eps) Xc; sqrt(eps (n - 1)) I], whose Gram matrix is the shrunken one.
    """
    n, k = centred.shape[-2:]
    identity = torch.eye(k, dtype=centred.dtype, device=centred.device)
    if eps:
        ridge = (math.sqrt(eps * (n - 1)) * identity).expand(*centred.shape[:-2], k, k)
        centred = torch.cat([math.sqrt(1 - eps) * centred, ridge], dim=-2)
    q, r = torch.linalg.qr(centred)
    inverse = torch.linalg.solve_triangular(r, identity, upper=True)
    # The length of what *all* other columns leave unexplained of each column, as a fraction of the column's;
    # Cholesky's fraction is its square. R_jj sees the columns before j only, and can hide a dependence.
    lengths = torch.linalg.vector_norm(inverse, dim=-1) * torch.linalg.vector_norm(r, dim=-2)
    unexplained, tolerance = 1 / lengths.amax(-1), 10 * k * torch.finfo(r.dtype).eps
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r.dtype)
    scale = signs[..., None, :] * math.sqrt(n - 1)
    return _Factorisation((inverse * scale).mT, unexplained, tolerance, None if eps else q * scale)


def _pca(centred: Tensor, eps: float) -> _Factorisation:
    values, vectors, unexplained, tolerance = _eigen(centred, eps)
    largest = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    vectors = vectors * torch.where(largest < 0, -1.0, 1.0)
    matrix = values.rsqrt()[..., None] * vectors.mT
    # l_j / (l_j - l_i) = 1/2 + (l_j + l_i) / 2 (l_j - l_i). The second term turns axes i and j into each
    # other. Equal eigenvalues have no axes, so it fades to 0 below a relative gap of `limit`.
    above, below = values[..., None, :], values[..., None]
    gap = (above - below) / (above + below)
    limit = torch.finfo(centred.dtype).eps ** 0.5
    weights = 0.5 + 0.5 * gap / gap.square().clamp_min(limit**2)
    return _Factorisation(matrix.to(centred), unexplained, tolerance, weights=weights.to(centred))


def _zca(centred: Tensor, eps: float) -> _Factorisation:
    values, vectors, unexplained, tolerance = _eigen(centred, eps)
    matrix = ((vectors * values.rsqrt()[..., None, :]) @ vectors.mT).to(centred)
    # No eigenvalues are subtracted: Sigma^-1/2 is smooth where eigenvalues coincide, and so are the weights.
    roots = values.sqrt()
    weights = (roots[..., None, :] / (roots[..., None, :] + roots[..., None])).to(centred)
    return _Factorisation(matrix, unexplained, tolerance, basis=vectors.to(centred), weights=weights)


def _eigen(centred: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """Eigenvalues (..., k) float64, descending; eigenvectors in columns; `unexplained` and `tolerance`.

    In double precision throughout, because the error of an eigenvalue is a fraction of the *largest* one, and
    the inverse root of a small one would magnify it.
    """
    k, covariance = centred.shape[-1], _covariance(centred.double(), eps)
    # LAPACK aborts the program at NaN or infinity, so such a slice is replaced here, and refused afterwards.
    sound = covariance.isfinite().all(-1).all(-1)
    identity = torch.eye(k, dtype=covariance.dtype, device=covariance.device)
    values, vectors = torch.linalg.eigh(torch.where(sound[..., None, None], covariance, identity))
    values, vectors = values.flip(-1), vectors.flip(-1)
    lengths = values.clamp_min(0).sqrt()
    unexplained = torch.where(sound, lengths[..., -1] / lengths[..., 0], 0.0)
    # These are lengths, as for QR. From a covariance of doubles they are known to the root of epsilon only.
    rounding, of_doubles = (k * torch.finfo(dtype).eps for dtype in (centred.dtype, torch.float64))
    tolerance = max(10 * rounding, math.sqrt(20 * of_doubles))
    return values.clamp_min(torch.finfo(values.dtype).tiny), vectors, unexplained.to(centred), tolerance


def _covariance(centred: Tensor, eps: float) -> Tensor:
    """(1 - eps) Sigma + eps I, (..., k, k)."""
    covariance = (centred.mT @ centred).mul_((1 - eps) / (centred.shape[-2] - 1))
    if eps:
        covariance.diagonal(dim1=-2, dim2=-1).add_(eps)
    return covariance


FACTORISATIONS = {"cholesky": _cholesky, "qr": _qr, "zca": _zca, "pca": _pca}
WHITENING = (*FACTORISATIONS, "newton-schulz")


class _Whitening(torch.autograd.Function):
    """Z = Xc W^T with W^T W = [(1 - eps) Sigma + eps I]^-1 = S^-1, and its gradient in closed form.

    Differentiate W S W^T = I, with A = W dS W^T: dW W^-1 plus its transpose is -A. So dW = -phi(A) W with
    phi(A) + phi(A)^T = A. How phi divides A is the only difference between the members of the family:

        Cholesky   the lower triangle and half the diagonal, because W stays triangular (Murray, 1602.07527)
        PCA        A_ij l_j / (l_j - l_i), with the eigenvalues l of S, because W S W^T stays diagonal
        ZCA        A_ij l_j^1/2 / (l_j^1/2 + l_i^1/2) in the basis of eigenvectors: W stays symmetric

    Hence dZ = dXc W^T - Z phi(A)^T. For a loss with G = dl/dZ, the second term contributes -<G^T Z, phi(A)>
    = -<T, A>, T being what phi's adjoint makes of G^T Z, and, A being symmetric, -<(T + T^T) / 2, A>. Now
    dS = (1 - eps) (dXc^T Xc + Xc^T dXc) / (n - 1) makes A = B + B^T with B = (1 - eps) / (n - 1) W dXc^T Z.
    Collecting what multiplies dXc, and subtracting column means because Xc is centred (C):

        dl/dX = C [(G - (1 - eps) / (n - 1) Z (T + T^T)) W].

    These are three products of the size of X and no solve: fewer than autograd needs for the same chain.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float, method: str, centre: bool) -> Tensor:
        centred = x - x.mean(-2, keepdim=True) if centre else x
        factorisation = FACTORISATIONS[method](centred, eps)
        mask = _mask(factorisation, centred, x, method, centre)
        matrix = factorisation.matrix * mask
        z = centred @ matrix.mT if factorisation.whitened is None else factorisation.whitened * mask
        ctx.save_for_backward(z, matrix, factorisation.basis, factorisation.weights)
        ctx.eps, ctx.centre = eps, centre
        return z

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative("whiten")
        z, matrix, basis, weights = ctx.saved_tensors
        with float32_products(z.device):
            symmetric = _adjoint(grad.mT @ z, basis, weights)
            rows = [tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (grad, z, symmetric)]
            grad_x = torch.baddbmm(*rows, alpha=(ctx.eps - 1) / (z.shape[-2] - 1)).view_as(z) @ matrix
        if ctx.centre:
            grad_x.sub_(grad_x.mean(-2, keepdim=True))
        return grad_x, None, None, None


def _adjoint(m: Tensor, basis: Tensor | None, weights: Tensor | None) -> Tensor:
    """T + T^T, where T is what phi's adjoint makes of m = G^T Z (..., k, k)."""
    if weights is None:
        lower = m.tril()
        symmetric = lower + lower.mT  # T + T^T, except that its diagonal stands here twice
        symmetric.diagonal(dim1=-2, dim2=-1).mul_(0.5)
        return symmetric
    weighted = weights * m if basis is None else basis @ (weights * (basis.mT @ m @ basis)) @ basis.mT
    return weighted + weighted.mT


def _newton_schulz(x: Tensor, eps: float, steps: int, centre: bool) -> Tensor:
    """Whitening by P <- (3 P - P^3 S) / 2 from P = I, with S = Sigma / tr Sigma: P approaches S^-1/2.

    This is the coupled form, which carries P S along: in it rounding errors die out, while the form above
    lets them grow once P has converged (Higham, Functions of Matrices, 2008, Sec. 6.4). Autograd
    differentiates the steps.
    """
    centred = x - x.mean(-2, keepdim=True) if centre else x
    covariance = _covariance(centred, eps)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    product, inverse_root = covariance / trace[..., None, None], identity
    for _ in range(steps):
        step = 1.5 * identity - 0.5 * inverse_root @ product
        product, inverse_root = product @ step, step @ inverse_root
    matrix = inverse_root * trace.rsqrt()[..., None, None]
    with torch.no_grad():  # nothing is factorised: a slice is refused only if it has no spread at all
        factorisation = _Factorisation(matrix, (trace > 0).to(trace), tolerance=0.5)
        mask = _mask(factorisation, centred, x, "newton-schulz", centre)
    return centred @ matrix.mT * mask


class SingularCovarianceError(ValueError):
    """A ValueError: a slice's covariance has no usable factorisation, as it spans fewer than k dimensions."""


MAX_OFFSET = 0.03  # of a whitened slice's mean, in standard deviations: 1e-3 in the covariance


def _check_arguments(x: Tensor, method: str, eps: float, steps: int) -> None:
    """Raise ValueError for whatever can be refused without looking at the values of `x`."""
    if method not in WHITENING:
        raise ValueError(f"unknown whitening method {method!r}; there are: {', '.join(WHITENING)}")
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], the weight of the identity mixed into Sigma; got {eps}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
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
            f"cannot be inverted. Use n >= 2k = {2 * k} samples per slice (at least n > k), or a smaller k."
        )


def _mask(factorisation: _Factorisation, centred: Tensor, x: Tensor, method: str, centre: bool) -> Tensor:
    """`check_slices` of a factorisation, (..., 1, 1); where `centre`, of the whitened mean too."""
    unexplained = factorisation.unexplained
    if centre:
        # A constant dimension minus its rounded mean leaves a residue, whose variance would be whitened to 1.
        # So the mean that rounding left must be small beside the spread.
        offset = (centred.mean(-2, keepdim=True) @ factorisation.matrix.mT).abs().amax((-1, -2))
        unexplained = torch.where(offset < MAX_OFFSET, unexplained, 0.0)
    return check_slices(unexplained, x, factorisation.tolerance, method)[..., None, None]


def check_slices(unexplained: Tensor, x: Tensor, tolerance: float, method: str) -> Tensor:
    """1 for each slice whose `unexplained` (...) is above `tolerance`; NaN for the others, which are refused.

    NaN in `unexplained` counts as bad. `x` (..., n, k) is read only to explain a failure.
    """
    x = x.detach()
    if torch.compiler.is_compiling():
        return torch.ops.wmse.check_slices(unexplained, x, tolerance, method)
    ok = unexplained > tolerance
    sizes, evidence = x.shape[-2:], None if deferred() else (unexplained, x)
    require(ok, lambda flags: _explain(flags, sizes, tolerance, method, evidence))
    return torch.where(ok, 1.0, math.nan).to(x.dtype)


@torch.library.custom_op("wmse::check_slices", mutates_args=())
def _compiled_check(unexplained: Tensor, x: Tensor, tolerance: float, method: str) -> Tensor:
    """`check_slices` as one node of a compiled graph, which keeps the check without a graph break."""
    return check_slices(unexplained, x, tolerance, method)


@_compiled_check.register_fake
def _(unexplained: Tensor, x: Tensor, tolerance: float, method: str) -> Tensor:
    return torch.empty_like(unexplained)


def _explain(
    ok: Tensor, sizes: torch.Size, tolerance: float, method: str, evidence: tuple[Tensor, Tensor] | None
) -> ValueError:
    """The error for the first slice that `ok` (...) marks as bad.

    sizes: n and k. evidence: `unexplained` and `x` of that call; None if the check was deferred.
    """
    n, k = sizes
    index = tuple((~ok).nonzero()[0].tolist())
    where = f"slice {index if len(index) != 1 else index[0]}" if index else "the slice"
    where += f" ({int((~ok).sum())} of {ok.numel()} slices fail; n = {n} samples, k = {k} dimensions)"
    share = f"less than {tolerance:.1e}"
    if evidence:
        unexplained, x = evidence
        if not bool(x[index].isfinite().all()):
            return ValueError(f"x holds NaN or infinity in {where}: look for them where x is computed.")
        share = f"{float(unexplained[index]):.1e}"
    else:
        where += " (found by a deferred check, in an earlier call)"
    other = ", or QR (method='qr' here, whitening='qr' of a loss)" if method == "cholesky" else ""
    return SingularCovarianceError(
        f"the covariance of {where} cannot be factorised: the other dimensions explain all but {share} of "
        f"one; at least {tolerance:.1e} must be left. Either the samples span fewer than k dimensions "
        f"(collapse, duplicates, a constant dimension), or n is too close to k, or rounding hides their "
        f"spread, so far are they from the origin{'' if evidence else ', or some are NaN or infinite'}. "
        f"Ways out: n >= 2k = {2 * k} samples per slice, a smaller k, eps > 0 (for example 1e-3){other}."
    )
