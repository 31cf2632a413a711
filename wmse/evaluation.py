"""What representations are worth: k-NN and linear probe on features, and measures of collapse.

Everything here runs in float32 (TF32 off) or better, without augmentation but for `cca_dimensions`' views.
Accuracies are in percent.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmse.data import ImageSet
from wmse.recipes import Recipe
from wmse.views import make_views

BATCH = 1000


@contextmanager
def float32_arithmetic(device: torch.device | str) -> Iterator[None]:
    """No autocast and no TF32 inside: both change distances and probes by more than seeds do."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@torch.inference_mode()
def features(encoder: nn.Module, images: ImageSet) -> Tensor:
    """Features (n, f) float32 of all images, un-augmented, by the encoder in eval mode."""
    training = encoder.training
    encoder.eval()
    with float32_arithmetic(images.images.device):
        chunks = [encoder(images.normalised(index)) for index in torch.arange(len(images)).split(BATCH)]
    encoder.train(training)
    return torch.cat(chunks).clone()


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 5,
    metric: str = "euclidean",
) -> float:
    """Percent of test rows whose class is the commonest among their k nearest training rows.

    The paper's 5-NN: Euclidean distance on raw features, majority vote, ties to the smallest class.

    Args:
        train, test: (n, f) and (m, f) floating point.
        train_labels, test_labels: (n,) and (m,) int64.
        metric: "euclidean" or "cosine".

    Raises:
        ValueError: an unknown metric, or fewer than k training rows.
    """
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"unknown metric {metric!r}; there are: euclidean, cosine")
    if len(train) < k:
        raise ValueError(f"{k}-NN needs {k} training rows at least; got {len(train)}")
    if metric == "cosine":
        train, test = F.normalize(train, dim=-1), F.normalize(test, dim=-1)
    # Squared distances by |a|^2 - 2ab + |b|^2 lose digits far from the origin: centre first. |a|^2, the
    # query's own, changes no ranking.
    centre = train.mean(0)
    train, test = train - centre, test - centre
    squares = train.square().sum(-1)
    classes = int(train_labels.max()) + 1
    correct = 0
    with float32_arithmetic(train.device):
        for rows, labels in zip(test.split(BATCH), test_labels.split(BATCH), strict=True):
            nearest = torch.addmm(squares, rows, train.T, alpha=-2).topk(k, largest=False).indices
            votes = F.one_hot(train_labels[nearest], classes).sum(1)
            correct += int((votes.argmax(-1) == labels).sum())
    return 100 * correct / len(test)


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    epochs: int = 500,
    batch_size: int = 1000,
    learning_rates: tuple[float, float] = (1e-2, 1e-6),
    weight_decay: float = 5e-6,
    seed: int = 0,
) -> float:
    """Test accuracy in percent of one linear layer trained on frozen features.

    The official code's schedule: Adam, the learning rate falling exponentially an epoch from the first to the
    second of `learning_rates`, incomplete batches dropped (a set smaller than a batch is one batch), the
    last epoch's accuracy. Features are taken as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = train.shape[1] ** -0.5
    weight, bias = (
        ((2 * torch.rand(*shape, generator=generator) - 1) * bound).to(train.device).requires_grad_()
        for shape in ((int(train_labels.max()) + 1, train.shape[1]), (int(train_labels.max()) + 1,))
    )
    first, last = learning_rates
    optimizer = torch.optim.Adam([weight, bias], lr=first, weight_decay=weight_decay, foreach=True)
    batch_size = min(batch_size, len(train))
    whole = len(train) // batch_size * batch_size
    with float32_arithmetic(train.device), torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(train), generator=generator).to(train.device)[:whole]
            for index in order.split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(F.linear(train[index], weight, bias), train_labels[index]).backward()
                optimizer.step()
            optimizer.param_groups[0]["lr"] *= (last / first) ** (1 / epochs)
    correct = (F.linear(test, weight.detach(), bias.detach()).argmax(-1) == test_labels).sum()
    return 100 * int(correct) / len(test)


def effective_rank(x: Tensor) -> float:
    """RankMe (Garrido et al., 2023): exp of the entropy of x's (n, k) normalised singular values, uncentred.

    1 for embeddings that are all alike, k for a flat spectrum.
    """
    values = torch.linalg.svdvals(x.double())
    shares = values / values.sum() + 1e-7  # RankMe's own guard against log 0
    return float(torch.exp(-(shares * shares.log()).sum()))


def embedding_std(x: Tensor) -> float:
    """Standard deviation of each dimension of the L2-normalised rows of x (n, k), averaged, times sqrt(k).

    0 when all rows point one way, near 1 when they are spread over the sphere (Chen and He, 2021, Sec. 4.1).
    """
    return float(F.normalize(x.double(), dim=-1).std(0).mean() * x.shape[1] ** 0.5)


def cca_dimensions(first: Tensor, second: Tensor) -> float:
    """Sum of squared canonical correlations between two views' embeddings, each (n, k): 0 to k.

    How many dimensions, linearly transformed at will, the views agree on. W-MSE's loss does not change under
    shifts and triangular maps of the embeddings, and neither does this measure, while rank and standard
    deviation do. Unrelated views score about k^2 / n.
    """
    bases = []
    for view in (first, second):
        centred = view.double() - view.double().mean(0)
        left, values, _ = torch.linalg.svd(centred, full_matrices=False)
        # Directions below float32's resolution are rounding noise, not dimensions of the embedding.
        resolution = max(view.shape) * torch.finfo(torch.float32).eps
        bases.append(left[:, values > resolution * values[0].clamp_min(1e-300)])
    return float((bases[0].T @ bases[1]).square().sum())


def evaluate(
    encoder: nn.Module, projector: nn.Module, train: ImageSet, test: ImageSet, recipe: Recipe
) -> dict[str, float]:
    """All metrics of a run: classifiers learn on `train`; they and the measures of collapse are of `test`.

    Args:
        encoder, projector: on the images' device.
        recipe: its views are drawn for `cca_dimensions`; its seed serves the probe and those views.

    Returns:
        `linear_top1`, `knn5_euclidean_top1`, `knn5_cosine_top1` in percent; `effective_rank_features`,
        `effective_rank_embeddings`, `embedding_std` and `cca_dimensions` as their functions define them.
    """
    train_features, test_features = features(encoder, train), features(encoder, test)
    sets = (train_features, train.labels, test_features, test.labels)
    generator = torch.Generator(test.images.device).manual_seed(recipe.seed)
    both = nn.Sequential(encoder, projector).eval()
    with torch.inference_mode(), float32_arithmetic(test.images.device):
        embeddings = torch.cat([projector(rows) for rows in test_features.split(BATCH)])
        pairs = [
            torch.stack(
                [both(view) for view in make_views(chunk, 2, test.mean, test.std, recipe.views, generator)]
            )
            for chunk in test.images.split(BATCH)
        ]
    return {
        "linear_top1": linear_probe(*sets, seed=recipe.seed),
        "knn5_euclidean_top1": knn_accuracy(*sets),
        "knn5_cosine_top1": knn_accuracy(*sets, metric="cosine"),
        "effective_rank_features": effective_rank(test_features),
        "effective_rank_embeddings": effective_rank(embeddings),
        "embedding_std": embedding_std(embeddings),
        "cca_dimensions": cca_dimensions(*torch.cat(pairs, dim=1)),
    }
