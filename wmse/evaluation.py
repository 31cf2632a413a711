"""What representations are worth: k-NN and linear probes on features, measures of the embeddings.

Everything here runs in float32 (TF32 off) or better, without augmentation but for what compares two views.
Accuracies are in percent.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmse.data import ImageSet, StreamedSet, view_batches
from wmse.metrics import alignment, cca_dimensions, effective_rank, embedding_std, uniformity, whitened
from wmse.recipes import Recipe

BATCH = 1000
TOP5_CLASSES = 100  # classes from which on top-5 accuracy is reported
LABEL_SHARES = {"10pct": 0.1, "1pct": 0.01}  # of the probe's labels, for label efficiency
Images = ImageSet | StreamedSet


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


@contextmanager
def _frozen(device: torch.device, *networks: nn.Module) -> Iterator[None]:
    """Networks in eval mode, and as they were after; no gradients, float32."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        with torch.inference_mode(), float32_arithmetic(device):
            yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def features(encoder: nn.Module, images: Images) -> Tensor:
    """Features (n, f) float32 of all images, un-augmented, by the encoder in eval mode."""
    with _frozen(images.device, encoder):
        return torch.cat([encoder(chunk) for chunk in images.batches(BATCH)])


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
        for part in filter(len, parts):  # batches come whole: the images left over are a batch of their own
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


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Percent of rows of logits (m, classes) whose label, of (m,) int64, is among the k largest."""
    hits = (logits.topk(min(k, logits.shape[1])).indices == labels[:, None]).sum()
    return 100 * int(hits) / len(labels)


def linear_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, **schedule) -> float:
    """Test accuracy in percent of one linear layer trained on frozen features.

    Args:
        train, test: (n, f) and (m, f) float32.
        train_labels, test_labels: (n,) and (m,) int64.
        schedule: keywords of `train_linear`.
    """
    return top_k_accuracy(classify(train, train_labels, test, **schedule), test_labels)


def classify(train: Tensor, train_labels: Tensor, test: Tensor, **schedule) -> Tensor:
    """Logits (m, classes) of test rows (m, f) by a linear layer trained on others; as in `linear_probe`."""
    with float32_arithmetic(test.device):
        return F.linear(test, *train_linear(train, train_labels, **schedule))


def stratified_subset(labels: Tensor, share: float, seed: int = 0) -> Tensor:
    """Indices, ascending int64, of that share of each class in labels (n,), rounded, but one image at least.

    Each class gives the first of its images in one random order of all, drawn by the seed: so a subset of
    smaller share lies within one of larger share.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels.cpu()[order]
    members = [order[shuffled == label] for label in shuffled.unique()]
    chosen = [part[: max(1, round(share * len(part)))] for part in members]
    return torch.cat(chosen).sort().values.to(labels.device)


def evaluate(
    encoder: nn.Module, projector: nn.Module, probe: Images, test: Images, recipe: Recipe
) -> dict[str, float | None]:
    """All metrics of a run: classifiers learn on `probe`; they and the measures of collapse are of `test`.

    Args:
        encoder, projector: on the images' device.
        recipe: its views are drawn for what compares two views; its seed serves all that is random.

    Returns:
        In percent, of features:
        `linear_top1`, and `linear_top5` where the set has 100 classes or more;
        `linear_top1_10pct` and `linear_top1_1pct`, the same probe on so many of the labels
        (`stratified_subset`). As many epochs, hence fewer steps: on CIFAR-10 25,000, 2,500 (5,000 images) and
        500 (500 images, one batch an epoch);
        `knn5_euclidean_top1`, `knn5_cosine_top1`.

        As their functions define them:
        `effective_rank_features`, `effective_rank_embeddings`, `embedding_std` of un-augmented images;
        `cca_dimensions`, `alignment` and, averaged over the two, `uniformity` of two views' embeddings;
        `effective_rank_whitened`, `alignment_whitened`, `uniformity_whitened` after `whitened`.
        None: `cca_dimensions` of fewer than 2k images, and the last three where `whitened` is None.
    """
    known, new = features(encoder, probe), features(encoder, test)
    views = two_views(encoder, projector, test, recipe)
    scores = _accuracies(known, probe.labels, new, test, recipe.seed)
    return scores | _measures(new, project(projector, new), views, recipe.seed)


def _accuracies(
    known: Tensor, known_labels: Tensor, new: Tensor, test: Images, seed: int
) -> dict[str, float]:
    logits = classify(known, known_labels, new, seed=seed)
    scores = {"linear_top1": top_k_accuracy(logits, test.labels)}
    if len(test.classes) >= TOP5_CLASSES:
        scores["linear_top5"] = top_k_accuracy(logits, test.labels, 5)
    for name, share in LABEL_SHARES.items():
        index = stratified_subset(known_labels, share, seed)
        few = (known[index], known_labels[index])
        scores[f"linear_top1_{name}"] = linear_probe(*few, new, test.labels, seed=seed)
    sets = (known, known_labels, new, test.labels)
    for metric in ("euclidean", "cosine"):
        scores[f"knn5_{metric}_top1"] = knn_accuracy(*sets, metric=metric)
    return scores


def _measures(rows: Tensor, embeddings: Tensor, views: Tensor, seed: int) -> dict[str, float | None]:
    """Measures of features (n, f), embeddings (n, k) and the embeddings (2, n, k) of two views."""
    enough = len(embeddings) >= 2 * embeddings.shape[1]
    white, *white_views = (whitened(cloud) for cloud in (embeddings, *views))
    both_white = all(view is not None for view in white_views)
    return {
        "effective_rank_features": effective_rank(rows),
        "effective_rank_embeddings": effective_rank(embeddings),
        "embedding_std": embedding_std(embeddings),
        "cca_dimensions": cca_dimensions(*views) if enough else None,
        "alignment": alignment(*views),
        "uniformity": _mean_uniformity(views, seed),
        "effective_rank_whitened": None if white is None else effective_rank(white),
        "alignment_whitened": alignment(*white_views) if both_white else None,
        "uniformity_whitened": _mean_uniformity(white_views, seed) if both_white else None,
    }


def _mean_uniformity(views: Iterable[Tensor], seed: int) -> float:
    """As Wang and Isola report it: the uniformity of each view, averaged."""
    return fmean(uniformity(view, seed) for view in views)


BETAS = (0.9, 0.999)  # of Adam
EPSILON = 1e-8


@torch.no_grad()
def train_linear(
    rows: Tensor,
    labels: Tensor,
    epochs: int = 500,
    batch_size: int = 1000,
    learning_rates: tuple[float, float] = (1e-2, 1e-6),
    weight_decay: float = 5e-6,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Weight (classes, f) and bias (classes,) of a linear classifier of rows (n, f) float32.

    The official code's schedule: cross-entropy, Adam with an L2 penalty, the learning rate falling
    exponentially an epoch from the first to the second of `learning_rates`, incomplete batches dropped (a set
    smaller than a batch is one batch), the last epoch's weights. Rows are taken as they are. First weights
    and batches depend on the seed alone, not on the device. TF32 is as it is set outside.
    """
    device, width, classes = rows.device, rows.shape[1], int(labels.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    bound = width**-0.5  # of the first weights, as in torch's own linear layer
    start = (2 * torch.rand(classes * (width + 1), generator=generator) - 1) * bound
    layer = _Layer(start.to(device), *torch.zeros(3, len(start), device=device))
    batch_size = min(batch_size, len(rows))
    order = torch.empty(len(rows) // batch_size, batch_size, dtype=torch.int64, device=device)
    scales = torch.empty(len(order), 2, device=device)

    def epoch() -> None:
        for index, (rate, guard) in zip(order, scales, strict=True):
            _gradient(layer, rows[index], labels[index], weight_decay)
            _adam(layer, rate, guard)

    run = epoch
    first, last = learning_rates
    for done in range(epochs):
        permutation = torch.randperm(len(rows), generator=generator)
        order.copy_(permutation[: order.numel()].view_as(order))
        rate = first * (last / first) ** (done / epochs)
        scales.copy_(_adam_scales(rate, done * len(order), len(order)))
        run()
        if done == 0 and device.type == "cuda":
            run = _captured(epoch, device)
    return _weight_and_bias(layer.parameters, width)


class _Layer(NamedTuple):
    """A linear layer in training by Adam. Each tensor holds a weight, row by row, and a bias: (c f + c,)."""

    parameters: Tensor
    gradient: Tensor
    mean: Tensor  # running mean of the gradient
    square: Tensor  # running mean of its square


def _weight_and_bias(flat: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Views of a tensor of `_Layer`: weight (c, f) and bias (c,), with f = `width`."""
    classes = len(flat) // (width + 1)
    return flat[: classes * width].view(classes, width), flat[classes * width :]


def _gradient(layer: _Layer, rows: Tensor, labels: Tensor, weight_decay: float) -> None:
    """Write the gradient of the mean cross-entropy and of weight_decay / 2 |parameters|^2.

    That of the former is (softmax - one-hot) / n, times the rows.
    """
    weight, bias = _weight_and_bias(layer.parameters, rows.shape[1])
    into_weight, into_bias = _weight_and_bias(layer.gradient, rows.shape[1])
    errors = torch.addmm(bias, rows, weight.T).softmax(1)
    errors.scatter_add_(1, labels[:, None], errors.new_full((len(rows), 1), -1.0))
    torch.addmm(weight, errors.T, rows, beta=weight_decay, alpha=1 / len(rows), out=into_weight)
    torch.add(errors.mean(0), bias, alpha=weight_decay, out=into_bias)


def _adam(layer: _Layer, rate: Tensor, guard: Tensor) -> None:
    """A step of Adam (Kingma and Ba, ICLR 2015, Sec. 2, last paragraph), given a row of `_adam_scales`."""
    layer.mean.lerp_(layer.gradient, 1 - BETAS[0])
    layer.square.mul_(BETAS[1]).addcmul_(layer.gradient, layer.gradient, value=1 - BETAS[1])
    layer.parameters.addcdiv_(layer.mean * rate, layer.square.sqrt().add_(guard), value=-1)


def _adam_scales(learning_rate: float, done: int, steps: int) -> Tensor:
    """Step size and epsilon, corrected for the bias of Adam's means, of the steps after the first `done`.

    (steps, 2) float64. Known ahead, they reach the device once an epoch.
    """
    step = torch.arange(done + 1, done + steps + 1, dtype=torch.float64)
    mean, square = (1 - beta**step for beta in BETAS)
    return torch.stack([learning_rate * square.sqrt() / mean, EPSILON * square.sqrt()], 1)


def _captured(epoch: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`epoch` as one CUDA graph. It must have run once, as nothing may be initialised during a capture."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            epoch()
    return graph.replay
