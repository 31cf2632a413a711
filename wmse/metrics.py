"""Measures of a cloud of embeddings: spectra, collapse, alignment and uniformity.

Rows are samples throughout: x is (n, k), floating point. Everything is computed in float64, except whitening.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wmse.whitening import SingularCovarianceError, whiten

VIEWS = ("the first view", "the second view")
UNIFORMITY_ROWS = 2000  # rows whose pairs `uniformity` averages over: 2 million pairs, 32 MB


def finite(x: Tensor, what: str = "x") -> Tensor:
    """x (n, k), if it holds neither NaN nor infinity; else ValueError, naming `what` and the first such row.

    All comparisons with NaN are false, so distances and ranks of NaN would look like plausible numbers.
    """
    sound = x.isfinite().flatten(1).all(1)
    if not bool(sound.all()):
        row, count = int(sound.int().argmin()), int((~sound).sum())
        raise ValueError(
            f"{what}: row {row} holds NaN or infinity ({count} of {len(x)} rows do), and nothing can be "
            "measured on that: look at the image of that row, and whether the networks diverged in training."
        )
    return x


def eigenvalues(x: Tensor) -> Tensor:
    """Eigenvalues (k,) float64 of the covariance of the rows of x (n, k), divisor n - 1, descending."""
    centred = finite(x).double() - x.double().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / (len(x) - 1))
    return values.flip(0).clamp_min(0)


def effective_rank(x: Tensor) -> float:
    """RankMe (Garrido et al., 2023): exp of the entropy of x's (n, k) normalised singular values, uncentred.

    1 for embeddings that are all alike, k for a flat spectrum.
    """
    x = finite(x).double()
    # The eigenvalues of the smaller Gram matrix are many times faster than singular values. In float64 they
    # give these to 1e-8 of the largest; RankMe's own guard against log 0 is coarser.
    gram = x.T @ x if x.shape[1] <= len(x) else x @ x.T
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values / values.sum() + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def embedding_std(x: Tensor) -> float:
    """Standard deviation of each dimension of the L2-normalised rows of x (n, k), averaged, times sqrt(k).

    0 when all rows point one way, near 1 when they are spread over the sphere (Chen and He, 2021, Sec. 4.1).
    """
    return float(F.normalize(finite(x).double(), dim=-1).std(0).mean() * x.shape[1] ** 0.5)


def cca_dimensions(first: Tensor, second: Tensor) -> float:
    """Sum of squared canonical correlations between two views' embeddings, each (n, k): 0 to k.

    It counts the dimensions that the views agree on after the best linear maps. Shifts and triangular maps of
    the embeddings leave it as it is, as they leave W-MSE's loss; rank and standard deviation they change.
    Unrelated views score about k^2 / n.
    """
    a, b = map(_principal_coordinates, map(finite, (first, second), VIEWS))
    return float((a.T @ b).square().sum())


def _principal_coordinates(x: Tensor) -> Tensor:
    """An orthonormal basis (n, r) float64 of the centred columns of x (n, k), r <= k."""
    centred = x.double() - x.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    # Directions below float32's resolution are rounding noise, not dimensions of the embedding.
    resolution = max(x.shape) * torch.finfo(torch.float32).eps
    kept = values > resolution**2 * values[-1].clamp_min(1e-300)
    return centred @ (vectors[:, kept] * values[kept].rsqrt())


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of L2-normalised positives: rows i of two views' embeddings, each (n, k).

    0 when two views of an image are embedded alike, 4 at most. Unrelated embeddings score `2 - 2 |m|^2`, with
    m the mean of the normalised rows (Wang and Isola, ICML 2020, Sec. 4.1, alpha = 2).
    """
    a, b = (F.normalize(view.double(), dim=-1) for view in map(finite, (first, second), VIEWS))
    return float((a - b).square().sum(-1).mean())


def uniformity(x: Tensor, seed: int = 0) -> float:
    """log of the mean of `exp(-2 |a - b|^2)` over pairs of different L2-normalised rows of x (n, k).

    0 when all rows point one way; lower where they cover the sphere more evenly, down to about -4 (Wang and
    Isola, ICML 2020, Sec. 4.1, t = 2). Of x with more than `UNIFORMITY_ROWS` rows only so many are taken,
    drawn by `seed`. ValueError for fewer than two rows, which make no pair.
    """
    if len(x) < 2:
        raise ValueError(f"uniformity needs 2 rows at least, to make a pair; got {len(x)}")
    finite(x)
    if len(x) > UNIFORMITY_ROWS:
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:UNIFORMITY_ROWS]
        x = x[chosen.to(x.device)]
    directions = F.normalize(x.double(), dim=-1)
    affinities = torch.exp(4 * (directions @ directions.T - 1))  # |a - b|^2 = 2 - 2ab for unit vectors
    total = affinities.sum() - affinities.diagonal().sum()
    return float(torch.log(total / (len(x) * (len(x) - 1))))


def whitened(x: Tensor) -> Tensor | None:
    """Rows of x (n, k) whitened by their own mean and covariance: float32 (n, k), on x's device.

    As W-MSE does in training (Cholesky factor), with all n rows as one slice. None where the result would be
    noise: n < 2k, or a singular covariance, as of collapsed embeddings. ValueError for NaN or infinity.
    """
    if len(finite(x)) < 2 * x.shape[1]:
        return None
    try:
        # QR finds Cholesky's whitened rows without squaring the condition number, so None means that float32,
        # in which networks compute, cannot tell the spread from rounding. On the CPU the error comes at once.
        return whiten(x.float().cpu(), "qr").to(x.device)
    except SingularCovarianceError:
        return None


def spectra(features: Tensor, embeddings: Tensor) -> dict[str, list[float] | None]:
    """The spectra that a record keeps: eigenvalues, descending, to five significant digits.

    Of `features` (n, f), of `embeddings` (n, k) of the same images, and of the embeddings after `whitened`,
    which are 1 by construction (None where `whitened` gives None).
    """
    clouds = {"features": features, "embeddings": embeddings, "whitened": whitened(embeddings)}
    found = {name: None if x is None else eigenvalues(x).tolist() for name, x in clouds.items()}
    return {name: values and [float(f"{value:.5g}") for value in values] for name, values in found.items()}
