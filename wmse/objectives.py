"""Which loss a recipe's method minimises, and what sizes it needs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wmse import losses
from wmse.losses import check_channel_sizes, check_pairs, check_sizes
from wmse.networks import Outputs
from wmse.recipes import Recipe


class Batch(NamedTuple):
    """What a loss may look at besides the recipe."""

    outputs: Outputs
    labels: Tensor  # (n,) int64
    generator: torch.Generator  # of the slices


def _slicing(batch: Batch, recipe: Recipe) -> dict[str, Any]:
    """What the losses that whiten slices have in common."""
    return {
        "slice_size": recipe.slice_size,
        "iterations": recipe.iterations,
        "normalize": recipe.normalize,
        "whitening": recipe.whitening,
        "generator": batch.generator,
        "eps": recipe.whitening_eps,
        "whitening_steps": recipe.whitening_iterations,
    }


def _w_mse(batch: Batch, recipe: Recipe) -> Tensor:
    embeddings = batch.outputs.embeddings
    if recipe.detach_second:
        embeddings = torch.stack([embeddings[0], embeddings[1].detach()])
    return losses.w_mse_loss(embeddings, **_slicing(batch, recipe))


def _mse(batch: Batch, recipe: Recipe) -> Tensor:
    return losses.mse_loss(batch.outputs.embeddings, recipe.normalize)


def _simclr(batch: Batch, recipe: Recipe) -> Tensor:
    return losses.nt_xent_loss(batch.outputs.embeddings, recipe.temperature)


def _byol(batch: Batch, recipe: Recipe) -> Tensor:
    return losses.byol_loss(batch.outputs.predictions, batch.outputs.targets)


def _barlow_twins(batch: Batch, recipe: Recipe) -> Tensor:
    return losses.barlow_twins_loss(batch.outputs.embeddings, recipe.redundancy_weight)


def _vicreg(batch: Batch, recipe: Recipe) -> Tensor:
    return losses.vicreg_loss(batch.outputs.embeddings, *recipe.vicreg_weights)


def _cw_rgp(batch: Batch, recipe: Recipe) -> Tensor:
    return losses.cw_rgp_loss(batch.outputs.embeddings, groups=recipe.groups, **_slicing(batch, recipe))


def _intl(batch: Batch, recipe: Recipe) -> Tensor:
    return losses.intl_loss(
        batch.outputs.embeddings, recipe.whitening_iterations, recipe.trace_weight, recipe.normalize
    )


def _supervised(batch: Batch, recipe: Recipe) -> Tensor:
    scores = batch.outputs.embeddings.float()
    return F.cross_entropy(scores.flatten(0, 1), batch.labels.repeat(len(scores)))


OBJECTIVES: dict[str, Callable[[Batch, Recipe], Tensor]] = {
    "w-mse": _w_mse,
    "mse": _mse,
    "simclr": _simclr,
    "byol": _byol,
    "barlow-twins": _barlow_twins,
    "vicreg": _vicreg,
    "cw-rgp": _cw_rgp,
    "intl": _intl,
    "supervised": _supervised,
}
METHODS = (*OBJECTIVES, "none")

# Losses that look at the batch as a whole. Over several processes they see the embeddings of all. The others
# are means over images or over slices, which never cross processes: there only gradients travel.
WHOLE_BATCH = ("simclr", "barlow-twins", "vicreg", "intl")


def check_method(recipe: Recipe, batch_size: int) -> None:
    """Raise ValueError, saying what to change, for sizes that the recipe's loss cannot work with.

    Args:
        batch_size: images that the loss sees at once: of one process, or of all for `WHOLE_BATCH`.
    """
    if recipe.method not in METHODS:
        raise ValueError(f"unknown method {recipe.method!r}; there are: {', '.join(METHODS)}")
    d, k = recipe.positives, recipe.embedding_dim
    if recipe.method == "w-mse":
        check_sizes(d, batch_size, k, recipe.slice_size, recipe.iterations)
    elif recipe.method == "cw-rgp":
        check_channel_sizes(d, batch_size, k, recipe.slice_size, recipe.groups, recipe.iterations)
    elif recipe.method in ("supervised", "none"):
        if d < 1:
            raise ValueError(f"positives = {d}: at least 1 view of an image is needed")
    else:
        check_pairs(d)
    if recipe.detach_second and (recipe.method, d) != ("w-mse", 2):
        raise ValueError(
            f"detach_second is for method w-mse with 2 positives; got {recipe.method} with {d}: leave it off"
        )
    if recipe.method == "intl" and k <= batch_size:
        raise ValueError(
            f"embedding_dim = {k} is not more than the {batch_size} images of a batch, between which INTL "
            f"whitens: take at least {batch_size + 1} dimensions ({2 * batch_size} is better) or fewer images"
        )
