"""How good representations are: k-NN and linear probes on features, and measures of the embeddings.

Everything here runs in float32 (TF32 off) or better. Images are augmented only for the measures that compare
two views. Accuracies are in percent.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmse.data import Images, stratified_subset, view_batches
from wmse.metrics import (
    alignment,
    cca_dimensions,
    effective_rank,
    embedding_std,
    finite,
    uniformity,
    whitened,
)
from wmse.numerics import float32_arithmetic
from wmse.recipes import Recipe

BATCH = 1000
TOP5_CLASSES = 100  # classes from which on top-5 accuracy is reported
LABEL_SHARES = {"10pct": 0.1, "1pct": 0.01}  # of the probe's labels, for label efficiency


@contextmanager
def _frozen(device: torch.device, *networks: nn.Module) -> Iterator[None]:
    """Put networks in eval mode inside, without gradients and in float32; afterwards restore their modes."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        with torch.inference_mode(), float32_arithmetic(device):
            yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def features(encoder: nn.Module, images: Images, split: str = "") -> Tensor:
    """Features (n, f) float32 of all images, un-augmented, by the encoder in eval mode.

    Raises ValueError, naming the set, its `split` and the image, if a feature is NaN or infinite.
    """
    with _frozen(images.device, encoder):
        rows = torch.cat([encoder(chunk) for chunk in images.batches(BATCH)])
    return finite(rows, f"features of {images.name} {split}".rstrip() + ", a row per image")


def project(projector: nn.Module, rows: Tensor) -> Tensor:
    """Embeddings (n, k) float32 of features (n, f), by the projector in eval mode."""
    with _frozen(rows.device, projector):
        return torch.cat([projector(chunk) for chunk in rows.split(BATCH)])


def two_views(encoder: nn.Module, projector: nn.Module, images: Images, recipe: Recipe) -> Tensor:
    """Embeddings (2, n, k) float32 of two views of each image, drawn by the recipe's settings and seed."""
    device = images.device
    generator = torch.Generator(device).manual_seed(recipe.seed)
    whole = len(images) // BATCH * BATCH
    parts = torch.arange(len(images), device=device).split([whole, len(images) - whole])
    pairs = []
    with _frozen(device, encoder, projector):
        for part in filter(len, parts):  # `view_batches` drops incomplete batches: the rest is one of its own
            size = min(BATCH, len(part))
            drawn = view_batches(images, part, 2, size, recipe.views, generator, seed=recipe.seed)
            pairs += [torch.stack([projector(encoder(view)) for view in views]) for views, _ in drawn]
        return torch.cat(pairs, dim=1)


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
    Rows are (n, f) and (m, f) floating point, labels (n,) and (m,) int64, `metric` "euclidean" or "cosine".
    Raises ValueError for another metric, for fewer than k training rows, and for rows that hold NaN or
    infinity or are so long that their squared distances would be infinite.
    """
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"unknown metric {metric!r}; there are: euclidean, cosine")
    if len(train) < k:
        raise ValueError(f"{k}-NN needs {k} training rows at least; got {len(train)}")
    if metric == "cosine":
        train, test = F.normalize(train, dim=-1), F.normalize(test, dim=-1)
    # Squared distances by |a|^2 - 2ab + |b|^2 lose digits far from the origin, so the rows are centred first.
    # |a|^2, the query's own, is left out because it changes no ranking.
    centre = finite(train, "training features").mean(0)
    train, test = train - centre, finite(test, "test features") - centre
    squares = train.square().sum(-1)
    finite(squares[:, None], "squared lengths of training features")
    finite(test.square().sum(-1)[:, None], "squared lengths of test features")
    classes = int(train_labels.max()) + 1
    correct = 0
    with float32_arithmetic(train.device):
        for rows, labels in zip(test.split(BATCH), test_labels.split(BATCH), strict=True):
            nearest = torch.addmm(squares, rows, train.T, alpha=-2).topk(k, largest=False).indices
            votes = F.one_hot(train_labels[nearest], classes).sum(1)
            correct += int((votes.argmax(-1) == labels).sum())
    return 100 * correct / len(test)


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Percent of rows of logits (m, classes) whose label, of (m,) int64, is among the k largest."""
    hits = (finite(logits, "logits").topk(min(k, logits.shape[1])).indices == labels[:, None]).sum()
    return 100 * int(hits) / len(labels)


def clustered_error(right: Tensor, clusters: Tensor, draws: int = 1000, seed: int = 0) -> float:
    """Standard error, in points, of an accuracy on images in clusters, by a bootstrap over the clusters.

    Renderings of one original are right or wrong together, so they tell less than as many independent images.
    Each draw takes as many clusters as there are, with replacement, and the accuracy on all their images.

    Args:
        right: (m,) bool, whether each image was classified rightly.
        clusters: (m,) integers, the original that each image renders. ValueError for fewer than two.
    """
    originals, place = clusters.cpu().unique(return_inverse=True)
    if len(originals) < 2:
        raise ValueError(f"an error over clusters needs 2 clusters at least; got {len(originals)}")
    sizes, hits = place.bincount().double(), place.bincount(right.cpu().double())
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(originals), (draws, len(originals)), generator=generator)
    return float((100 * hits[drawn].sum(1) / sizes[drawn].sum(1)).std())


@torch.enable_grad()
def train_linear(
    features: Tensor,
    labels: Tensor,
    epochs: int = 500,
    batch_size: int = 1000,
    learning_rates: tuple[float, float] = (1e-2, 1e-6),
    weight_decay: float = 5e-6,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Weight (classes, f) and bias (classes,) of a linear classifier of features (n, f) float32.

    The schedule is the official code's: cross-entropy, Adam with an L2 penalty, a learning rate that falls
    exponentially per epoch from the first to the second of `learning_rates`, and the weights of the last
    epoch. Incomplete batches are dropped; a set smaller than a batch is one batch. Features are taken as they
    are. First weights and batches depend on the seed alone, not on the device. TF32 is as it is set outside.
    On a GPU the host is the limit: the 25,000 steps for CIFAR-10 are of a single layer.
    Raises ValueError if features hold NaN or infinity, or if the classifier diverges.
    """
    finite(features, "training features")
    generator = torch.Generator().manual_seed(seed)
    width, classes = features.shape[1], int(labels.max()) + 1
    layer = nn.utils.skip_init(nn.Linear, width, classes, device=features.device)
    for parameter in layer.parameters():  # in torch's own bounds, but drawn by `seed`, and on the CPU
        parameter.data.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * width**-0.5)
    first, last = learning_rates
    optimizer = torch.optim.Adam(layer.parameters(), first, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (last / first) ** (1 / epochs))
    batch_size = min(batch_size, len(features))
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for batch in order[: len(order) // batch_size * batch_size].split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    weight, bias = (parameter.detach() for parameter in layer.parameters())
    finite(torch.cat([weight, bias[:, None]], 1), "weights of the linear probe, a row per class")
    return weight, bias


def classify(train: Tensor, train_labels: Tensor, test: Tensor, **schedule) -> Tensor:
    """Logits (m, classes) of test features by a linear layer trained on `train`; as in `linear_probe`."""
    with float32_arithmetic(test.device):
        return F.linear(finite(test, "test features"), *train_linear(train, train_labels, **schedule))


def linear_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, **schedule) -> float:
    """Test accuracy in percent of one linear layer trained on frozen features.

    Features are (n, f) and (m, f) float32, labels (n,) and (m,) int64, `schedule` keywords of `train_linear`.
    """
    return top_k_accuracy(classify(train, train_labels, test, **schedule), test_labels)


def _accuracies(
    encoder: nn.Module, probe: Images, test_features: Tensor, test: Images, seed: int
) -> dict[str, float | None]:
    """The percentages of `evaluate`."""
    train_features, labels = features(encoder, probe, "probe"), probe.labels
    logits = classify(train_features, labels, test_features, seed=seed)
    metrics = {"linear_top1": top_k_accuracy(logits, test.labels)}
    if len(test.classes) >= TOP5_CLASSES:
        metrics["linear_top5"] = top_k_accuracy(logits, test.labels, 5)
    for name, share in LABEL_SHARES.items():
        index = stratified_subset(labels, share, seed)
        part = linear_probe(train_features[index], labels[index], test_features, test.labels, seed=seed)
        metrics[f"linear_top1_{name}"] = part
    for metric in ("euclidean", "cosine"):
        accuracy = knn_accuracy(train_features, labels, test_features, test.labels, metric=metric)
        metrics[f"knn5_{metric}_top1"] = accuracy
    return metrics


def evaluate(
    encoder: nn.Module,
    projector: nn.Module,
    probe: Images,
    test: Images,
    recipe: Recipe,
    test_features: Tensor | None = None,
) -> dict[str, float | None]:
    """All metrics of a run: classifiers learn on `probe`; they and the measures of collapse are of `test`.

    Args:
        encoder, projector: on the images' device.
        recipe: gives the settings of the views that are compared, and the seed of all that is random.
        test_features: `features(encoder, test)`, if the caller has them already.

    Returns:
        Percentages, of features: `linear_top1`, and `linear_top5` where the set has 100 classes or more;
        `linear_top1_10pct` and `linear_top1_1pct`, the same probe on that share of the labels (as many
        epochs, so fewer steps: on CIFAR-10 25,000, 2,500 and 500); `knn5_euclidean_top1`, `knn5_cosine_top1`.
        Images without classes have none of these.

        As their functions define them: `effective_rank_features`, `effective_rank_embeddings` and
        `embedding_std` of un-augmented images; `cca_dimensions`, `alignment` and, averaged over the two,
        `uniformity` of two views' embeddings; `effective_rank_whitened`, `alignment_whitened` and
        `uniformity_whitened` after `whitened`.
        None: `cca_dimensions` of fewer than 2k images, and the last three where `whitened` is None.
    """
    seed = recipe.seed
    test_features = features(encoder, test, "test") if test_features is None else test_features
    metrics = _accuracies(encoder, probe, test_features, test, seed) if test.classes else {}

    embeddings = project(projector, test_features)
    views = two_views(encoder, projector, test, recipe)
    white, *white_views = (whitened(cloud) for cloud in (embeddings, *views))
    both_white = all(view is not None for view in white_views)
    enough = len(embeddings) >= 2 * embeddings.shape[1]
    return metrics | {
        "effective_rank_features": effective_rank(test_features),
        "effective_rank_embeddings": effective_rank(embeddings),
        "embedding_std": embedding_std(embeddings),
        "cca_dimensions": cca_dimensions(*views) if enough else None,
        "alignment": alignment(*views),
        "uniformity": fmean(uniformity(view, seed) for view in views),  # per view, as Wang and Isola do
        "effective_rank_whitened": None if white is None else effective_rank(white),
        "alignment_whitened": alignment(*white_views) if both_white else None,
        "uniformity_whitened": fmean(uniformity(view, seed) for view in white_views) if both_white else None,
    }
