"""The data set `digits`: handwritten digits over photographs, made from images that scikit-learn ships."""

from functools import lru_cache

import numpy as np

# These constants set how hard the data set is.
DIGITS_SEED = 0
DIGITS_COUNT = {"train": 2048, "test": 2048}  # images of a split
HANDWRITTEN = {"train": 1437, "test": 360}  # digits that they render, each about as often
TEST_DIGITS = 0.2  # share of the handwritten digits kept for the test split
TEST_COLUMNS = 0.25  # share of each photograph, at its right edge, kept for test backgrounds
DIGIT_SIDE = (22.0, 32.0)  # side of the digit's 8x8 grid in pixels of the 32x32 image, uniform
DIGIT_OVERHANG = 2.0  # pixels by which the grid may leave the image; its outermost cells are mostly empty
DIGIT_SHARPNESS = 1.6  # slope of the ink's edges; 1 keeps the bilinear enlargement
DIGIT_INK = (0.1, 1.0)  # strength of the ink per channel, uniform; 1 changes the background by 255 levels
BACKGROUND_SHRINK = 8  # integer factor by which the photographs are shrunk, so that a crop covers more
BACKGROUND_SIDE = 2  # side of a crop of the shrunk photographs in pixels; enlarged to 32, it is blurred
BACKGROUND_CONTRAST = 0.35  # factor on the background's levels; dim backgrounds keep the ink visible


@lru_cache
def draw_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 3, 32, 32) and labels int64 (n,), 0 to 9, of the split "train" or "test".

    An image is |background - ink|, as in MNIST-M (Ganin et al., JMLR 17(59), 2016), from the 1,797 digits of
    8x8 pixels and the two photographs that scikit-learn ships. Unlike MNIST-M, the ink has a random colour
    and the photographs are dim and blurred, so that an image is recognised by its digit rather than by its
    background. The splits have no digit and no background pixel in common.
    Several images of a split render one handwritten digit, and `digit_of_image` says which.
    """
    from sklearn.datasets import load_digits, load_sample_images
    from sklearn.model_selection import train_test_split

    count, test = DIGITS_COUNT[split], split == "test"
    rng = np.random.RandomState(DIGITS_SEED + test)  # numpy keeps its numbers the same in all versions
    digits, targets = load_digits(return_X_y=True)
    shares = {"test_size": TEST_DIGITS, "stratify": targets, "random_state": DIGITS_SEED}
    digits, targets = train_test_split(digits, targets, **shares)[test::2]
    digits = digits.reshape(-1, 8, 8) / 16
    chosen = _choose(split, rng)

    side = rng.uniform(*DIGIT_SIDE, count)
    room = (32 - side + 2 * DIGIT_OVERHANG)[:, None]
    corner = rng.uniform(size=(count, 2)) * room - DIGIT_OVERHANG  # top and left edge, pixels
    rows, columns = (_enlarge(8, edge[:, None], side[:, None]) for edge in corner.T)
    ink = rows @ digits[chosen] @ columns.transpose(0, 2, 1)
    ink = np.clip(0.5 + DIGIT_SHARPNESS * (ink - 0.5), 0, 1) * 255
    ink = ink[:, None] * rng.uniform(*DIGIT_INK, (count, 3, 1, 1))

    photographs = np.stack([_shrink(image, BACKGROUND_SHRINK) for image in load_sample_images().images])
    border = round(photographs.shape[2] * (1 - TEST_COLUMNS))
    photographs = photographs[:, :, border:] if test else photographs[:, :, :border]
    crops = np.lib.stride_tricks.sliding_window_view(photographs, (BACKGROUND_SIDE,) * 2, axis=(1, 2))
    crops = crops[tuple(rng.randint(0, n, count) for n in crops.shape[:3])]  # (n, 3, side, side)
    sharp = _enlarge(BACKGROUND_SIDE, 0, 32)
    sharp /= sharp.sum(1, keepdims=True)  # extend the outermost pixels to the border
    background = sharp @ crops @ sharp.T
    return np.rint(np.abs(background * BACKGROUND_CONTRAST - ink)).astype(np.uint8), targets[chosen].astype(
        np.int64
    )


def digit_of_image(split: str) -> np.ndarray:
    """The number of the handwritten digit that each image of a split renders: int64 (n,).

    Images of one digit are right or wrong together, so errors of an accuracy are computed over digits, as
    `wmse.evaluation.clustered_error` does.
    """
    return _choose(split, np.random.RandomState(DIGITS_SEED + (split == "test")))


def _choose(split: str, rng: np.random.RandomState) -> np.ndarray:
    return np.resize(rng.permutation(HANDWRITTEN[split]), DIGITS_COUNT[split])


def _enlarge(cells: int, edge, side) -> np.ndarray:
    """Bilinear weights (..., 32, cells) that stretch the cells over `side` pixels, starting at `edge`."""
    position = (np.arange(32) + 0.5 - edge) / side * cells - 0.5
    return np.clip(1 - np.abs(position[..., None] - np.arange(cells)), 0, None)


def _shrink(photograph: np.ndarray, factor: int) -> np.ndarray:
    """Mean of each block of factor x factor pixels: (h, w, 3) to float64 (h // factor, w // factor, 3)."""
    h, w = (size // factor for size in photograph.shape[:2])
    return photograph[: h * factor, : w * factor].reshape(h, factor, w, factor, 3).mean((1, 3))
