"""The embedded set `digits`, made offline from what scikit-learn ships."""

from functools import lru_cache

import numpy as np

# The embedded set `digits`. These constants govern how hard it is.
DIGITS_SEED = 0
DIGITS_COUNT = {"train": 2048, "test": 2048}  # images, of 1,437 and 360 handwritten digits
TEST_DIGITS = 0.2  # share of the handwritten digits kept for the test split
TEST_COLUMNS = 0.25  # share of each photograph, at its right edge, kept for test backgrounds
DIGIT_SIDE = (22.0, 32.0)  # side of the digit's 8x8 grid in pixels of the 32x32 image, uniform
DIGIT_OVERHANG = 2.0  # pixels by which the grid may leave the image; its outermost cells are mostly empty
DIGIT_SHARPNESS = 1.6  # slope of the ink's edges; 1 leaves the bilinear enlargement as it is
DIGIT_INK = (0.1, 1.0)  # strength of the ink in each channel, uniform, 1 being a difference of 255 levels
BACKGROUND_SHRINK = 8  # the photographs are shrunk by this whole factor, so that a crop sees more of them
BACKGROUND_SIDE = 2  # side of a crop of the shrunk photographs in pixels; enlarged to 32, so out of focus
BACKGROUND_CONTRAST = 0.35  # background levels are multiplied by this, so that strong ink stays visible


@lru_cache
def draw_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits over photographs, |background - ink|: images uint8 (n, 3, 32, 32), labels (n,).

    The recipe of MNIST-M (Ganin et al., JMLR 17(59), 2016) with the 1,797 digits of 8x8 pixels and the two
    photographs that scikit-learn ships; here the ink has a random colour and the photographs are dim and out
    of focus, so that the digit tells images apart better than its background does. Splits share neither
    digits nor background pixels.
    """
    from sklearn.datasets import load_digits, load_sample_images
    from sklearn.model_selection import train_test_split

    count, test = DIGITS_COUNT[split], split == "test"
    rng = np.random.RandomState(DIGITS_SEED + test)  # numpy guarantees this generator's stream for good
    digits, targets = load_digits(return_X_y=True)
    share = train_test_split(
        np.arange(len(digits)), test_size=TEST_DIGITS, stratify=targets, random_state=DIGITS_SEED
    )[test]
    digits, targets = digits[share].reshape(-1, 8, 8) / 16, targets[share]
    chosen = np.resize(rng.permutation(len(digits)), count)

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
    sharp /= sharp.sum(1, keepdims=True)  # carry the outermost pixels on to the border
    background = sharp @ crops @ sharp.T
    images = np.abs(background * BACKGROUND_CONTRAST - ink)
    return np.rint(images).astype(np.uint8), targets[chosen].astype(np.int64)


def _enlarge(cells: int, edge, side) -> np.ndarray:
    """Bilinear weights (..., 32, cells) that stretch cells over `side` pixels from `edge` on, else zero."""
    position = (np.arange(32) + 0.5 - edge) / side * cells - 0.5
    return np.clip(1 - np.abs(position[..., None] - np.arange(cells)), 0, None)


def _shrink(photograph: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor blocks: (h, w, 3) to (h // factor, w // factor, 3), float64."""
    h, w = (size // factor for size in photograph.shape[:2])
    return photograph[: h * factor, : w * factor].reshape(h, factor, w, factor, 3).mean((1, 3))
