"""Which loss a recipe's method minimises, and which sizes that loss needs; the W-MSE loss as a module."""

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmse import distributed, losses
from wmse.losses import STANDARDIZE, W_MSE_WHITENING
from wmse.machine import check_seed
from wmse.networks import Outputs
from wmse.numerics import check_channel_sizes, check_pairs, check_sizes, resolve_precision
from wmse.recipes import Recipe

OBJECTIVES = (
    *("w-mse", "mse", "simclr", "byol", "barlow-twins", "vicreg", "cw-rgp", "intl", "lejepa"),
    "supervised",
)

# Losses that compare all images of a batch: each process takes them of the embeddings of all processes. The
# others are means over images or over slices, which never cross processes: only gradients are exchanged.
# For lejepa each process draws directions of its own, and DDP averages over them.
WHOLE_BATCH = ("simclr", "barlow-twins", "vicreg", "intl", "lejepa")


def compute_loss(recipe: Recipe, outputs: Outputs, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The scalar loss of a batch by the recipe's method.

    Args:
        labels: (n,) int64, for supervised training.
        generator: draws the slices of w-mse and cw-rgp, and the directions of lejepa.
    """
    embeddings = outputs.embeddings
    slicing = {
        "slice_size": recipe.slice_size,
        "iterations": recipe.iterations,
        "normalize": recipe.normalize,
        "whitening": recipe.whitening,
        "generator": generator,
        "eps": recipe.whitening_eps,
        "whitening_steps": recipe.whitening_iterations,
    }
    match recipe.method:
        case "w-mse":
            if recipe.detach_second:
                embeddings = torch.stack([embeddings[0], embeddings[1].detach()])
            return losses.w_mse_loss(embeddings, **slicing)
        case "mse":
            return losses.mse_loss(embeddings, recipe.normalize)
        case "simclr":
            return losses.nt_xent_loss(embeddings, recipe.temperature)
        case "byol":
            return losses.byol_loss(outputs.predictions, outputs.targets)
        case "barlow-twins":
            return losses.barlow_twins_loss(embeddings, recipe.redundancy_weight)
        case "vicreg":
            return losses.vicreg_loss(embeddings, *recipe.vicreg_weights)
        case "cw-rgp":
            return losses.cw_rgp_loss(embeddings, groups=recipe.groups, **slicing)
        case "intl":
            steps = recipe.whitening_iterations
            return losses.intl_loss(embeddings, steps, recipe.trace_weight, recipe.normalize)
        case "lejepa":
            return losses.lejepa_loss(embeddings, recipe.sigreg_weight, generator=generator)
        case "supervised":
            return F.cross_entropy(embeddings.float().flatten(0, 1), labels.repeat(len(embeddings)))
    raise ValueError(f"method {recipe.method!r} has no loss; these have one: {', '.join(OBJECTIVES)}")


class WMSELoss(nn.Module):
    """`w_mse_loss` as a module, called with the views' embeddings: `loss(z1, z2)`, or `loss(z)` of (d, n, k).

    Its arguments are those of `w_mse_loss` without the embeddings; TypeError for others.
    """

    def __init__(self, slice_size: int, **options):
        super().__init__()
        self.options = {"slice_size": slice_size, **options}
        inspect.signature(losses.w_mse_loss).bind(None, **self.options)

    def forward(self, *embeddings: Tensor) -> Tensor:
        """The loss of d >= 2 tensors (n, k), one per view, or of one tensor (d, n, k)."""
        together = embeddings[0] if len(embeddings) == 1 else torch.stack(embeddings)
        return losses.w_mse_loss(together, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def check_method(recipe: Recipe, batch_size: int) -> None:
    """Raise ValueError, saying what to change, for sizes that the recipe's loss cannot work with.

    Args:
        batch_size: images that the loss sees at once: those of all processes for `WHOLE_BATCH`, else of one.
    """
    if recipe.method not in (*OBJECTIVES, "none"):
        raise ValueError(f"unknown method {recipe.method!r}; there are: {', '.join(OBJECTIVES)}, none")
    d, k = recipe.positives, recipe.embedding_dim
    if recipe.method not in ("supervised", "none"):
        check_pairs(d)
    elif d < 1:
        raise ValueError(f"positives = {d}: at least 1 view of an image is needed")
    if recipe.method == "w-mse":
        check_sizes(batch_size, k, recipe.slice_size, recipe.iterations)
    elif recipe.method == "cw-rgp":
        check_channel_sizes(batch_size, k, recipe.slice_size, recipe.groups, recipe.iterations)
    if recipe.detach_second and (recipe.method, d) != ("w-mse", 2):
        raise ValueError(
            f"detach_second is for method w-mse with 2 positives; got {recipe.method} with {d}: leave it off"
        )
    if recipe.method == "intl" and k <= batch_size:
        raise ValueError(
            f"embedding_dim = {k} is not more than the {batch_size} images of a batch, between which INTL "
            f"whitens: take at least {batch_size + 1} dimensions ({2 * batch_size} is better) or fewer images"
        )


def check_recipe(recipe: Recipe, device: torch.device) -> None:
    """Raise ValueError, saying what to change, for a recipe that would fail later on this many processes."""
    check_seed(recipe.seed)
    if recipe.whitening not in W_MSE_WHITENING:
        raise ValueError(f"unknown whitening {recipe.whitening!r}; there are: {', '.join(W_MSE_WHITENING)}")
    if recipe.whitening == STANDARDIZE and (recipe.method != "w-mse" or recipe.whitening_eps):
        raise ValueError(
            f"whitening {STANDARDIZE!r} is for method w-mse without whitening_eps; got {recipe.method} with "
            f"{recipe.whitening_eps:g}: choose another whitening, or leave whitening_eps at 0"
        )
    needed = ["learning_rate", "batch_size", "embedding_dim", "projector_width", "width"]
    for field in needed + (["epochs"] if recipe.method != "none" else []):
        if not getattr(recipe, field) > 0:
            raise ValueError(f"{field} must be more than 0; got {getattr(recipe, field)}")
    if recipe.method == "none" and recipe.epochs:
        raise ValueError(f"method none trains nothing: epochs must be 0; got {recipe.epochs}")
    processes = distributed.size()
    if recipe.batch_size % processes:
        raise ValueError(
            f"batch_size = {recipe.batch_size} images cannot be shared equally by {processes} processes"
        )
    own = recipe.batch_size // processes
    try:
        check_method(recipe, recipe.batch_size if recipe.method in WHOLE_BATCH else own)
    except ValueError as error:
        if processes == 1:
            raise
        raise ValueError(
            f"each of {processes} processes has {own} of a batch's {recipe.batch_size} images, and slices "
            f"never cross processes: {error}"
        ) from None
    if recipe.sync_batchnorm and processes > 1 and device.type != "cuda":
        raise ValueError(f"sync_batchnorm works on CUDA only, not on {device.type}: leave it off")
    resolve_precision(recipe.precision, device)


def check_batch(recipe: Recipe, images: int) -> None:
    """Raise ValueError, saying what to change, for fewer training images than a batch has."""
    if not recipe.epochs or images >= recipe.batch_size:
        return
    fits = f"--batch-size {images}"
    if recipe.method == "w-mse":
        whole = images // recipe.slice_size * recipe.slice_size
        fits = f"--batch-size {whole}, of whole slices"
        if not whole:
            fits = f"--batch-size {images} --slice-size {images} --embedding-dim {max(1, images // 2)}"
    raise ValueError(
        f"{images} training images make no batch of {recipe.batch_size}: take more images, or {fits}"
    )
