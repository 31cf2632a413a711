"""Recipes: every run of the book is a named set of choices, "cifar10/w-mse-4"."""

from dataclasses import dataclass, field, replace

from wmse.views import ViewSettings


@dataclass(frozen=True)
class Recipe:
    """All that decides what a run learns. The defaults are the paper's for W-MSE 2 on CIFAR-10."""

    dataset: str = "cifar10"
    """Image set to train on: digits or cifar10."""
    method: str = "w-mse"
    """Loss: w-mse, or mse (the same without whitening, which collapses)."""
    positives: int = 2
    """Views of each image in a batch, d."""
    encoder: str = "resnet18"
    """Encoder: resnet18 (32-pixel stem) or small."""
    projector_width: int = 1024
    """Units in the projector's hidden layer."""
    embedding_dim: int = 64
    """Dimensions of an embedding, k."""
    slice_size: int = 128
    """Images whitened together; must divide batch_size and exceed embedding_dim, 2k is advised."""
    iterations: int = 1
    """Random permutations into slices to average the loss over (w_iter of the official code)."""
    normalize: bool = True
    """Compare whitened embeddings by cosine; otherwise by Euclidean distance."""
    whitening: str = "cholesky"
    """Whitening method: cholesky or qr."""
    whitening_eps: float = 0.0
    """Shrinkage of the covariance towards the identity, 0 to 1."""
    views: ViewSettings = field(default_factory=ViewSettings)
    """What views are drawn from."""
    batch_size: int = 512
    """Images in a batch, n; an incomplete last batch is dropped."""
    epochs: int = 1000
    """Passes over the training images."""
    learning_rate: float = 3e-3
    """Adam's learning rate after the warm-up."""
    weight_decay: float = 1e-6
    """L2 penalty, added to the gradient as Adam does."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises linearly."""
    lr_drops: tuple[int, ...] = (50, 25)
    """The learning rate is multiplied by lr_drop_factor at these numbers of epochs before the end."""
    lr_drop_factor: float = 0.2
    """Factor of each drop of the learning rate."""
    precision: str = "auto"
    """auto (bfloat16 where native, float16 on older GPUs, else float32), float32, bfloat16 or float16."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    seed: int = 0
    """Seed of the weights, the batches, the views and the slices."""


# A handwritten digit has a right way round, so its views are not flipped; a fifth of it is no digit, so crops
# keep more; and its colour says nothing, so views often lose it and take any hue.
_digits = Recipe(
    dataset="digits",
    encoder="small",
    projector_width=256,
    embedding_dim=32,
    slice_size=64,
    batch_size=128,
    epochs=64,
    warmup_steps=50,
    lr_drops=(16, 6),
    views=ViewSettings(hue=0.5, grayscale_probability=0.5, crop_scale=(0.4, 1.0), flip_probability=0.0),
)

RECIPES = {
    "digits/w-mse-2": _digits,
    "digits/w-mse-4": replace(_digits, positives=4, batch_size=64),
    "digits/mse": replace(_digits, method="mse"),
    "cifar10/w-mse-2": Recipe(),
    "cifar10/w-mse-4": Recipe(positives=4, batch_size=256),
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ValueError, listing the names there are, if there is none."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]
