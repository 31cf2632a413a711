"""Recipes: every run of the book is a named set of choices, "cifar10/w-mse-4".

`Recipe` holds the choices. Below it, each named recipe is put together from what its data set, its method and
its budget change. The budgets are 1000 epochs as in the paper, 200, 25 of a network of half the width, which
take minutes on a large GPU, and two for processors: `-laptop`, and `cifar10-cpu`, which came before it.
"""

import difflib
import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class ViewSettings:
    """What random views are drawn from; the defaults are the official code's. ValueError out of range."""

    brightness: float = 0.4  # half-width of the factor around 1; a factor is never below 0
    contrast: float = 0.4  # likewise
    saturation: float = 0.4  # likewise
    hue: float = 0.1  # half-width of the shift around 0, in turns of the colour circle, up to .5
    jitter_probability: float = 0.8  # of the four above, together
    grayscale_probability: float = 0.1
    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    flip_probability: float = 0.5
    blur_probability: float = 0.0  # of a Gaussian blur after the flip; streamed sets only (ImageNet-100)
    blur_radius: tuple[float, float] = (0.1, 2.0)  # standard deviation of the blur, pixels
    size: int | None = None  # height and width of a view in pixels; None keeps the image's

    def __post_init__(self) -> None:
        limits = dict.fromkeys(("brightness", "contrast", "saturation"), math.inf) | {"hue": 0.5}
        chances = ("jitter_probability", "grayscale_probability", "flip_probability", "blur_probability")
        for name, limit in (limits | dict.fromkeys(chances, 1)).items():
            if not 0 <= getattr(self, name) <= limit or getattr(self, name) == math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a finite number from 0 to {limit}")
        for name, limit in {"crop_scale": 1, "crop_ratio": math.inf, "blur_radius": math.inf}.items():
            low, high = getattr(self, name)
            if not 0 < low <= high <= limit or high == math.inf:
                raise ValueError(f"{name} is ({low}, {high}); give finite 0 < low <= high <= {limit}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}; give at least 1 pixel, or None for the images' own size")


@dataclass(frozen=True)
class Recipe:
    """All that decides what a run learns. The defaults are the paper's for W-MSE 2 on CIFAR-10."""

    dataset: str = "cifar10"
    """Image set to train on: digits, cifar10, cifar100, stl10, tiny-imagenet, imagenet100, or folder (the
    user's own images)."""
    method: str = "w-mse"
    """w-mse, mse (the same without whitening, which collapses), simclr, byol, barlow-twins, vicreg, cw-rgp,
    intl, lejepa, supervised, or none (nothing is trained: a floor)."""
    positives: int = 2
    """Views of each image in a batch, d."""
    encoder: str = "resnet18"
    """Encoder: resnet18, small (for digits) or pixels (the image itself, for a floor)."""
    stem: str = "32px"
    """First layers of resnet18: 32px (3x3, stride 1, no pooling), 64px (with max-pooling) or 224px (7x7)."""
    width: int = 64
    """Channels of resnet18's first stage; later stages have 2, 4 and 8 times as many."""
    zero_init_residual: bool = False
    """Start each residual branch of resnet18 at zero."""
    projector_width: int = 1024
    """Units in a hidden layer of the projector, and of BYOL's predictor."""
    projector_layers: int = 2
    """Linear layers of the projector: 2 have one hidden layer, 1 has none. 0: the features are embeddings."""
    projector_batchnorm: bool = True
    """BatchNorm in each hidden layer."""
    projector_per_view: bool = False
    """Let the projector take one view at a time, as BYOL's always does: its BatchNorm sees each alone."""
    output_batchnorm: bool = False
    """An affine BatchNorm after the projector."""
    embedding_dim: int = 64
    """Dimensions of an embedding, k."""
    slice_size: int = 128
    """Images whitened together; must divide batch_size and exceed embedding_dim, 2k is advised."""
    iterations: int = 1
    """Random permutations into slices that the loss is averaged over (w_iter of the official code)."""
    normalize: bool = True
    """Compare embeddings by cosine; otherwise by Euclidean distance."""
    whitening: str = "cholesky"
    """Whitening method: cholesky, qr, zca, pca, newton-schulz; or standardize (W-MSE only), which gives each
    dimension variance 1 and leaves the correlations."""
    whitening_eps: float = 0.0
    """Shrinkage of the covariance towards the identity, 0 to 1."""
    whitening_iterations: int = 15
    """Steps of newton-schulz, and of INTL's."""
    groups: int = 4
    """CW-RGP: random groups of channels; a group must hold more channels than a slice holds images."""
    detach_second: bool = False
    """W-MSE of two views: let no gradient through the second, as solo-learn does."""
    temperature: float = 0.5
    """SimCLR's temperature."""
    target_momentum: float = 0.99
    """BYOL: the target's momentum in the first epoch; it rises to 1 along a cosine."""
    redundancy_weight: float = 0.008
    """Barlow Twins: weight of the correlations off the diagonal."""
    vicreg_weights: tuple[float, float, float] = (25.0, 25.0, 1.0)
    """VICReg: weights of invariance, variance and covariance."""
    trace_weight: float = 0.05
    """INTL: weight of the trace loss."""
    sigreg_weight: float = 0.02
    """LeJEPA: weight of SIGReg, 0 to 1; the distance of positives has the rest."""
    views: ViewSettings = field(default_factory=ViewSettings)
    """What views are drawn from."""
    batch_size: int = 512
    """Images in a batch of all processes together, n; an incomplete last batch is dropped."""
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
    cosine_schedule: bool = False
    """After the warm-up the learning rate falls to 0 along a cosine, in place of the drops."""
    precision: str = "auto"
    """auto (bfloat16 where native, float16 on older GPUs, else float32), float32, bfloat16 or float16."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    cuda_graphs: bool = True
    """On a GPU: replay the networks as CUDA graphs, and compile the views, so that the host keeps up."""
    sync_batchnorm: bool = False
    """On several GPUs: let BatchNorm see the batches of all of them."""
    seed: int = 0
    """Seed of the weights, the batches, the views and the slices."""


# Changes that a method makes to the paper's protocol, on any data set.
_CW_RGP = {"method": "cw-rgp", "whitening": "zca", "embedding_dim": 512, "slice_size": 64}
_CW_RGP |= {"groups": 4, "zero_init_residual": True}
_FOUR = {"positives": 4, "batch_size": 256}
METHOD_CHANGES: dict[str, dict] = {
    "w-mse-2": {},
    "w-mse-4": _FOUR,
    "mse": {"method": "mse"},
    "simclr": {"method": "simclr", "output_batchnorm": True},
    "byol": {"method": "byol"},
    "barlow-twins": {"method": "barlow-twins"},
    # CW-RGP's comparison, whose figures we quote, left out the original's division of the variance by 2.
    "vicreg": {"method": "vicreg", "vicreg_weights": (25.0, 50.0, 1.0)},
    "cw-rgp-2": _CW_RGP,
    "cw-rgp-4": _CW_RGP | _FOUR,
    "intl": {"method": "intl", "whitening_iterations": 4},
    "lejepa": {"method": "lejepa"},
    "supervised": {"method": "supervised"},
    "random-encoder": {"method": "none", "epochs": 0},
    "raw-pixels": {"method": "none", "epochs": 0, "encoder": "pixels"},
}

# Differences of solo-learn's W-MSE from the paper's, one at a time, then all: in the loss, the networks and
# the settings for CIFAR-10. Its batches are half as large, and its learning rate is two thirds.
_STRONG = ViewSettings(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grayscale_probability=0.2)
SOLO_LEARN: dict[str, dict] = {
    "detached": {"detach_second": True},
    "projector-per-view": {"projector_per_view": True},
    "half-batch": {"batch_size": 256},
    "lower-rate": {"learning_rate": 2e-3},
    "cosine": {"cosine_schedule": True},
    "strong-jitter": {"views": _STRONG},
}
SOLO_LEARN["solo-learn"] = {field: value for change in SOLO_LEARN.values() for field, value in change.items()}
METHOD_CHANGES |= {f"w-mse-2-{name}": change for name, change in SOLO_LEARN.items()}

TABLE_1 = ("simclr", "byol", "w-mse-2", "w-mse-4")
COMPARED = (*TABLE_1, "barlow-twins", "vicreg", "cw-rgp-2", "cw-rgp-4", "supervised")
FLOORS = ("random-encoder", "raw-pixels")

# The protocol of each data set. Only the losses that whiten slices of a batch read slice_size and iterations.
_SIXTY_FOUR = Recipe(learning_rate=2e-3, embedding_dim=128, slice_size=256, stem="64px")
_LARGE_VIEWS = replace(_STRONG, crop_scale=(0.08, 1.0), blur_probability=0.5, size=224)
DATASET_RECIPES = {
    "cifar10": Recipe(dataset="cifar10"),
    "cifar100": Recipe(dataset="cifar100"),
    "stl10": replace(_SIXTY_FOUR, dataset="stl10", epochs=2000, views=ViewSettings(size=64)),
    "tiny-imagenet": replace(_SIXTY_FOUR, dataset="tiny-imagenet"),
    "imagenet100": replace(_SIXTY_FOUR, dataset="imagenet100", stem="224px", epochs=240, views=_LARGE_VIEWS),
    # The user's own images are often fewer: smaller batches, a shorter warm-up.
    "folder": Recipe(
        dataset="folder", batch_size=256, epochs=200, warmup_steps=100, views=ViewSettings(size=32)
    ),
    # A mirrored digit is another sign, so views are not flipped. A crop of a fifth of the area seldom shows
    # which digit it is, so crops are larger. Colour says nothing about the class, so views often lose it and
    # take any hue.
    "digits": Recipe(
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
    ),
}

# Overrides for one (data set, method) or (budget, method) pair, applied last.
_DIGITS_VIEWS = DATASET_RECIPES["digits"].views
_DIGITS_STRONG = {"views": replace(_DIGITS_VIEWS, brightness=0.8, contrast=0.8, saturation=0.8)}
_TINY_CW = {"embedding_dim": 1024, "projector_width": 2048, "slice_size": 128, "groups": 2}
_DIGITS_CW = {"embedding_dim": 128, "slice_size": 32, "groups": 2}
PAIR_OVERRIDES: dict[tuple[str, str], dict] = {
    ("stl10", "w-mse-2"): {"iterations": 4},
    ("tiny-imagenet", "w-mse-2"): {"iterations": 4},
    ("cifar10", "cw-rgp-2"): {"iterations": 4, "batch_size": 256},
    ("tiny-imagenet", "cw-rgp-2"): _TINY_CW,
    ("tiny-imagenet", "cw-rgp-4"): _TINY_CW,
    ("digits", "cw-rgp-2"): _DIGITS_CW,
    ("digits", "cw-rgp-4"): _DIGITS_CW | {"batch_size": 64},
    ("digits", "w-mse-4"): {"batch_size": 64},
    ("folder", "w-mse-4"): {"batch_size": 128},
    ("digits", "w-mse-2-half-batch"): {"batch_size": 64},
    ("digits", "w-mse-2-strong-jitter"): _DIGITS_STRONG,
    ("digits", "w-mse-2-solo-learn"): {"batch_size": 64} | _DIGITS_STRONG,
    ("digits", "intl"): {"embedding_dim": 256},
}

# A processor's budget: the same number of steps and of views for every method. Of what was tried, this width
# with views of 24 px learned most in equal time (results/tuning). Objects are as large in such views as in
# whole images, because random crops enlarge. QR whitens as Cholesky does without squaring the condition
# number.
LAPTOP = {
    "epochs": 20,
    "width": 32,
    "stem": "64px",
    "views": ViewSettings(size=24),
    "batch_size": 256,
    "warmup_steps": 200,
    "whitening": "qr",
    "learning_rate": 2e-3,
    "cosine_schedule": True,
}
LAPTOP_FOUR = {"batch_size": 128, "epochs": 10}  # four views of half the images, for half the epochs
PAIR_OVERRIDES |= {
    (f"{dataset}-laptop", method): LAPTOP_FOUR
    for dataset in ("cifar10", "cifar100")
    for method in ("w-mse-4", "cw-rgp-4")
}

# Budgets below the paper's 1000 epochs; a name begins with its data set.
BUDGETS = {
    "cifar10-200": {"epochs": 200},
    "cifar10-25": {"epochs": 25, "width": 32, "warmup_steps": 200, "cosine_schedule": True},
    "cifar10-laptop": LAPTOP,
    "cifar100-laptop": LAPTOP,
    "cifar10-cpu": {"epochs": 20, "width": 16, "warmup_steps": 200, "lr_drops": (4, 2)},
}


def _recipe(name: str, method: str) -> Recipe:
    """The recipe of a method on the data set, or on the budget, that is called `name`."""
    dataset = name.partition("-")[0] if name in BUDGETS else name
    changes = BUDGETS.get(name, {}) | METHOD_CHANGES[method] | PAIR_OVERRIDES.get((dataset, method), {})
    return replace(DATASET_RECIPES[dataset], **changes | PAIR_OVERRIDES.get((name, method), {}))


_SETS = ("cifar10", "cifar100", "stl10", "tiny-imagenet")
_ROWS = (*COMPARED, "mse", *FLOORS)
_DIFFERENCES = [f"w-mse-2-{name}" for name in SOLO_LEARN]
_METHODS = [("digits", METHOD_CHANGES), *((name, _ROWS) for name in _SETS)]
_METHODS += [("imagenet100", ("w-mse-2", "w-mse-4")), *((name, _ROWS) for name in BUDGETS)]
_METHODS += [(name, _DIFFERENCES) for name in ("cifar10", "cifar10-200", "cifar10-cpu")]
_METHODS += [("cifar10-laptop", ["w-mse-2-detached"]), ("folder", ("w-mse-2", "w-mse-4", "simclr", "mse"))]
RECIPES = {f"{name}/{method}": _recipe(name, method) for name, methods in _METHODS for method in methods}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name. ValueError, with the names there are and the nearest, if there is none."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 3)
        meant = f". Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown recipe {name!r}; there are: {', '.join(RECIPES)}{meant}")
    return RECIPES[name]


STEM_OF_SIZE = {32: "32px", 64: "64px", 96: "64px", 224: "224px"}


def at_size(recipe: Recipe, size: int) -> Recipe:
    """A recipe of one's own images at another size in pixels, and with the stem that suits it.

    ValueError for a size without a stem of its own, and for the recipe of a published set.
    """
    if recipe.dataset != "folder":
        raise ValueError(f"size is for your own images, recipes folder/...; {recipe.dataset} has its own")
    if size not in STEM_OF_SIZE:
        raise ValueError(f"size is {size}; give one of {', '.join(map(str, STEM_OF_SIZE))} pixels")
    return replace(recipe, stem=STEM_OF_SIZE[size], views=replace(recipe.views, size=size))
