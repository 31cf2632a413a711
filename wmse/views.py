"""Random views of a batch of images, on the images' device, each view with parameters of its own.

Colour jitter, grayscale, random resized crop, horizontal flip, normalisation: the protocol of the official
code, in its order. `draw_parameters` draws every random number, `apply_views` is a pure function of images
and parameters, `make_views` does both. Choices between operations are made by arithmetic, so that the host
does not wait for the device, and `torch.compile` sees one graph.
"""

import functools
import math
import warnings
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmse.numerics import float32_products
from wmse.recipes import ViewSettings

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the operations of ColorJitter, as torchvision numbers them
CROP_TRIES = 10  # as in torchvision's RandomResizedCrop
CHUNK = 2**20  # input values per pass on a CPU: few enough for its cache, enough to hide what a call costs
PAPER_VIEWS = ViewSettings()  # the paper's settings for CIFAR
Triple = tuple[float, float, float]  # a value per channel, in units of [0, 1]


class ViewParameters(NamedTuple):
    """The random numbers behind m views: tensors on one device, a row per view."""

    brightness: Tensor  # float32 (m,), factor; 1 where a view is not jittered
    contrast: Tensor  # likewise
    saturation: Tensor  # likewise
    hue: Tensor  # float32 (m,), shift in turns; 0 where a view is not jittered
    order: Tensor  # int64 (m, 4), the jitter's operations from first to last (0 brightness ... 3 hue)
    grayscale: Tensor  # bool (m,)
    crop: Tensor  # int64 (m, 4): top, left, height, width in pixels of the image
    flip: Tensor  # bool (m,), after the crop

    def split(self, rows: int) -> list["ViewParameters"]:
        """The same parameters in pieces of `rows` views; the last may be shorter."""
        columns = (column.split(rows) for column in self)
        return [ViewParameters(*piece) for piece in zip(*columns, strict=True)]


def draw_parameters(
    count: int,
    height: int,
    width: int,
    settings: ViewSettings = PAPER_VIEWS,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> ViewParameters:
    """Draw the parameters of `count` views of images of `height` x `width` pixels as torchvision would.

    The numbers come from `generator` (default: the global one of `device`) and move to `device`, so a CPU
    generator gives the same views everywhere. ValueError if a count or size is below 1, and for settings that
    blur, which only `wmse.data.streaming` does.
    """
    _check_settings(count, height, width, settings)
    return _parameters(_uniform(count, generator, device), height, width, settings)


def _uniform(count: int, generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """All random numbers of `count` views, (33, count) in [0, 1)."""
    source = device if generator is None else generator.device
    uniform = torch.rand(13 + 2 * CROP_TRIES, count, generator=generator, device=source)
    return uniform.to(device, non_blocking=uniform.is_cpu)


def _parameters(uniform: Tensor, height: int, width: int, settings: ViewSettings) -> ViewParameters:
    chances, strengths, ranks, crops = uniform.split([3, 4, 4, 2 + 2 * CROP_TRIES])
    unjittered = chances[0] >= settings.jitter_probability
    factors = (
        _between(max(0.0, 1 - half), 1 + half, strengths[operation]).masked_fill(unjittered, 1.0)
        for operation, half in enumerate((settings.brightness, settings.contrast, settings.saturation))
    )
    return ViewParameters(
        *factors,
        hue=_between(-settings.hue, settings.hue, strengths[HUE]).masked_fill(unjittered, 0.0),
        order=ranks.argsort(0).T.contiguous(),
        grayscale=chances[1] < settings.grayscale_probability,
        crop=_crops(crops, height, width, settings),
        flip=chances[2] < settings.flip_probability,
    )


def apply_views(
    images: Tensor, parameters: ViewParameters, mean: Triple, std: Triple, size: int | None = None
) -> Tensor:
    """One view of each image: uint8 (m, 3, h, w) in, normalised float32 (m, 3, size, size) out.

    `parameters`: m rows, drawn for this h and w. `mean`, `std`: in units of [0, 1]. `size` None keeps h, w.
    Colours change as in torchvision's float kernels, and the crop is resized by Pillow's bicubic filter,
    along rows first, without its rounding to whole levels; all in float32, also under autocast. ValueError
    for other dtypes, shapes or numbers of rows, and for std <= 0.
    """
    _check_images(images)
    if len(parameters.flip) != len(images):
        raise ValueError(f"{len(images)} images need parameters of as many views, not {len(parameters.flip)}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std need 3 values each, std above 0; got mean {mean} and std {std}")
    in_chunks = images.device.type == "cpu" and not torch.compiler.is_compiling()
    rows = max(1, CHUNK // images[0].numel()) if in_chunks else len(images)
    pieces = zip(images.split(rows), parameters.split(rows), strict=True)
    with float32_products(images.device):
        views = [_view(*piece, mean, std, size) for piece in pieces]
    return torch.cat(views) if len(views) > 1 else views[0]


def make_views(
    images: Tensor,
    d: int,
    mean: Triple,
    std: Triple,
    settings: ViewSettings = PAPER_VIEWS,
    generator: torch.Generator | None = None,
    compiled: bool = False,
) -> Tensor:
    """d random views of each image: uint8 (n, 3, h, w) in, float32 (d, n, 3, h, w) out (or `settings.size`).

    The positives of image i are `views[:, i]`. The same generator state gives the same views. ValueError as
    in `draw_parameters` and `apply_views`, and for d < 1.

    compiled: compile all but the drawing of random numbers with `torch.compile`, once for each shape. On a
    GPU a dozen launches take the place of 250; values differ by rounding.
    """
    _check_images(images)
    if d < 1:
        raise ValueError(f"d is {d}; ask for at least one view of each image")
    n, _, height, width = images.shape
    _check_settings(d * n, height, width, settings)
    uniform = _uniform(d * n, generator, images.device)
    shape = tuple(images.shape), d, tuple(mean), tuple(std), settings
    work = _compiled(*shape) if compiled else _views_of
    with float32_products(images.device):
        return work(images, uniform, d, mean, std, settings)


def _views_of(
    images: Tensor, uniform: Tensor, d: int, mean: Triple, std: Triple, settings: ViewSettings
) -> Tensor:
    """`make_views` given its random numbers, (33, d * n)."""
    parameters = _parameters(uniform, *images.shape[2:], settings)
    views = apply_views(images.repeat(d, 1, 1, 1), parameters, mean, std, settings.size)
    return views.unflatten(0, (d, len(images)))


@functools.cache
def _compiled(*shape: Hashable) -> Callable[..., Tensor]:
    """`_views_of`, compiled for views of one shape and kind.

    Each has a code object of its own: of one, torch compiles eight forms and then raises an error.
    """
    own = FunctionType(_views_of.__code__.replace(), _views_of.__globals__)
    return torch.compile(own, fullgraph=True, dynamic=False, backend=_inductor)


def _inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """torch.compile's own backend, without its advice to turn on TF32.

    Views are float32 on purpose: TF32 keeps three digits, and views would differ from one device to another.
    Every process that compiles would print that advice. Other warnings pass.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores .* available but not enabled")
        return torch._dynamo.lookup_backend("inductor")(graph, inputs)


def _check_settings(count: int, height: int, width: int, settings: ViewSettings) -> None:
    if min(count, height, width) < 1:
        raise ValueError(f"count, height and width must be at least 1, got {count}, {height}, {width}")
    if settings.blur_probability > 0:
        raise ValueError(
            f"blur_probability is {settings.blur_probability}, but only views of streamed sets are blurred: "
            "set it to 0 for images in memory"
        )


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        seen = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"images are {seen}; give uint8 levels of shape (n, 3, h, w), none of these 0")


def _between(low: float, high: float, uniform: Tensor) -> Tensor:
    return low + (high - low) * uniform


def _crops(uniform: Tensor, height: int, width: int, settings: ViewSettings) -> Tensor:
    """torchvision's RandomResizedCrop from uniform (22, m): int64 (m, 4), top, left, height, width.

    Uniform area, log-uniform ratio, sizes rounded; the first of ten tries that fits, else a central crop.
    """
    place, areas, ratios = uniform.split([2, CROP_TRIES, CROP_TRIES])
    area = height * width * _between(*settings.crop_scale, areas)
    ratio = _between(*map(math.log, settings.crop_ratio), ratios).exp()
    heights, widths = (area / ratio).sqrt().round().long(), (area * ratio).sqrt().round().long()
    fits = ((heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)).int()
    first = fits.argmax(0, keepdim=True)  # of equal values, argmax takes the first
    h, w = heights.gather(0, first)[0], widths.gather(0, first)[0]
    tried = ((place[0] * (height - h + 1)).long(), (place[1] * (width - w + 1)).long(), h, w)
    h = max(1, min(height, round(width / settings.crop_ratio[0])))
    w = max(1, min(width, round(height * settings.crop_ratio[1])))
    central = ((height - h) // 2, (width - w) // 2, h, w)
    none_fits = fits.amax(0) == 0
    return torch.stack([t.masked_fill(none_fits, c) for t, c in zip(tried, central, strict=True)], 1)


def _view(images: Tensor, parameters: ViewParameters, mean: Triple, std: Triple, size: int | None) -> Tensor:
    views = _jitter(images.contiguous().float().div_(255), parameters)
    views = _blend(views, 1 - parameters.grayscale.float(), to_gray=1.0, to_mean=0.0)
    views = _resized_crop(views, parameters, size or images.shape[2], size or images.shape[3])
    return normalize_(views, mean, std)


def normalize_(x: Tensor, mean: Triple, std: Triple) -> Tensor:
    """(x - mean) / std for each channel of x float (..., 3, h, w), in place."""
    for channel, centre, spread in zip(x.unbind(-3), mean, std, strict=True):
        channel.sub_(centre).div_(spread)  # by plain numbers, because a tensor would be copied from the host
    return x


def _jitter(x: Tensor, parameters: ViewParameters) -> Tensor:
    """Colour jitter of x float32 (m, 3, h, w) in [0, 1], the operations in each view's own order.

    Brightness, contrast and saturation are one operation, a blend, and hue may come before, between or after
    them. So three blends are computed before hue and three after it; a blend on the wrong side of hue has
    factor 1, which changes nothing.
    """
    blends = (parameters.brightness, parameters.contrast, parameters.saturation)
    factors = torch.stack([*blends, torch.ones_like(parameters.hue)], 1).gather(1, parameters.order)
    to_gray, to_mean = ((parameters.order == operation).float() for operation in (SATURATION, CONTRAST))
    past_hue = (parameters.order == HUE).cumsum(1).bool()
    before, after = factors.masked_fill(past_hue, 1.0), factors.masked_fill(~past_hue, 1.0)
    for turn in (0, 1, 2):
        x = _blend(x, before[:, turn], to_gray[:, turn], to_mean[:, turn])
    x = _shift_hue(x, parameters.hue)
    for turn in (1, 2, 3):
        x = _blend(x, after[:, turn], to_gray[:, turn], to_mean[:, turn])
    return x


def _blend(x: Tensor, factor: Tensor, to_gray: Tensor | float, to_mean: Tensor | float) -> Tensor:
    """factor x + (1 - factor) (to_gray gray + to_mean mean(gray)), clamped; factors (m,), one per view."""
    red, green, blue = x.split(1, dim=1)
    gray = (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    weight = ((1 - factor) * to_gray)[:, None, None, None]
    other = gray.mean((2, 3), keepdim=True) * ((1 - factor) * to_mean)[:, None, None, None]
    return torch.addcmul(torch.addcmul(other, gray, weight), x, factor[:, None, None, None]).clamp_(0, 1)


def _shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Hue of x turned by `shift` (m,) turns; each pixel keeps its largest and its smallest value."""
    red, green, blue = x.split(1, dim=1)
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = high - low  # 0 for a gray pixel, which no hue changes
    # A hue is 1 + (g + b - r - low) / chroma sixths of a turn away from red, towards green or towards blue.
    away = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-12)).add_(1)
    hue = away.copysign_(green - blue).div_(6).add_(shift[:, None, None, None])
    distance = hue - torch.arange(3, device=x.device)[:, None, None] / 3  # to red, green and blue, in turns
    distance = distance.sub_(distance.round()).abs_()
    return torch.addcmul(low, chroma, distance.mul_(-6).add_(2).clamp_(0, 1))


def _resized_crop(x: Tensor, parameters: ViewParameters, out_height: int, out_width: int) -> Tensor:
    """Crop, resize and flip of x float32 (m, 3, h, w), clamped after each pass as Pillow's uint8 is."""
    top, left, crop_height, crop_width = parameters.crop.unbind(1)
    rows = _bicubic(top, crop_height, x.shape[2], out_height)
    columns = _bicubic(left, crop_width, x.shape[3], out_width)
    columns = torch.where(parameters.flip[:, None, None], columns.flip(1), columns)
    x = (x.flatten(1, 2) @ columns.mT).clamp_(0, 1).unflatten(1, x.shape[1:3])
    return (rows[:, None] @ x).clamp_(0, 1)


def _bicubic(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Pillow's bicubic (a = -.5): weights (m, out, size) from pixels start ... start + length - 1 to out."""
    start, length = start[:, None], length[:, None]
    pixel = torch.arange(size, device=start.device).expand(len(start), size)
    outside = (pixel < start) | (pixel >= start + length)
    position = (pixel + 0.5).masked_fill(outside, math.inf)  # infinitely far: weight 0
    scale = length / out  # above 1, where the crop shrinks, the filter widens with it
    centre = start + (torch.arange(out, device=start.device) + 0.5) * scale
    distance = (position[:, None, :] - centre[:, :, None]).abs_().div_(scale.clamp(min=1)[:, :, None])
    near, far = (1 - distance).clamp_(min=0), (2 - distance).clamp_(min=0)
    # The filter's two cubic pieces, written as one sum of truncated powers to avoid a branch.
    weights = (far * far).mul_(far - 1).mul_(0.5) + (near * near).mul_(1 - 2 * near)
    return weights.div_(weights.sum(2, keepdim=True))
