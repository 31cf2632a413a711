"""Views against torchvision's and Pillow's own transforms, fed the same parameters image by image."""

import dataclasses
import warnings

import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from wmse import views
from wmse.views import ViewSettings, apply_views, draw_parameters, make_views

RAW = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and std that leave [0, 1] as it is
CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
NOTHING = ViewSettings(
    jitter_probability=0, grayscale_probability=0, crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=0
)
CROP_ONLY = ViewSettings(jitter_probability=0, grayscale_probability=0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_images(count=48, height=32, width=32):
    """Noise, the hardest case for a resize, led by images on which colour operations may stumble."""
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=seeded(1))
    images[0], images[1] = 0, 255
    images[2] = images[2, :1]  # gray
    images[3] = images[3] // 128 * 255  # pure colours: channels tie
    images[4] = images[4] // 8  # dark
    images[5] = 200 + images[5] // 100  # nearly gray
    return images


def reference_colours(image, parameters, k):
    """torchvision's float kernels on one image float (3, h, w), in the order drawn for view k."""
    adjust = (
        (F.adjust_brightness, parameters.brightness),
        (F.adjust_contrast, parameters.contrast),
        (F.adjust_saturation, parameters.saturation),
        (F.adjust_hue, parameters.hue),
    )
    for operation in parameters.order[k].tolist():
        function, values = adjust[operation]
        image = function(image, values[k].item())
    return F.rgb_to_grayscale(image, 3) if parameters.grayscale[k] else image


def pillow_crop(image, parameters, k, size):
    """torchvision's resized_crop of a PIL image, and its flip: uint8 (3, h, w) in and out."""
    crop = F.crop(F.to_pil_image(image), *parameters.crop[k].tolist())
    # Rows first: Pillow 13 turns the passes round where the height shrinks much more than the width.
    crop = F.resize(crop, [crop.height, size[1]], F.InterpolationMode.BICUBIC)
    crop = F.resize(crop, list(size), F.InterpolationMode.BICUBIC)
    return F.pil_to_tensor(F.hflip(crop) if parameters.flip[k] else crop)


def pillow_float_crop(image, parameters, k, size):
    """The same through Pillow's float images, which round nothing: float (3, h, w) in [0, 1] in and out."""
    top, left, height, width = parameters.crop[k].tolist()
    channels = []
    for channel in image[:, top : top + height, left : left + width]:
        for shape in ((size[1], height), (size[1], size[0])):
            resized = Image.fromarray(channel.numpy()).resize(shape, Image.Resampling.BICUBIC)
            channel = F.pil_to_tensor(resized)[0].clamp(0, 1)
        channels.append(channel)
    return F.hflip(torch.stack(channels)) if parameters.flip[k] else torch.stack(channels)


def assert_same_distribution(ours, theirs):
    """Chi-square test of two samples of whole numbers; rare values are pooled. Five standard deviations."""
    bins = int(max(ours.max(), theirs.max())) + 1
    a, b = (torch.bincount(sample, minlength=bins).double() for sample in (ours, theirs))
    common = b >= 10
    a, b = (torch.cat([counts[common], counts[~common].sum()[None]]) for counts in (a, b))
    root = (len(ours) / len(theirs)) ** 0.5
    terms = ((a / root - b * root) ** 2 / (a + b))[a + b > 0]
    freedom = len(terms) - 1
    assert terms.sum() < freedom + 5 * (2 * freedom) ** 0.5


# Each operation against torchvision and Pillow


@pytest.mark.parametrize(
    ("operation", "half_width", "tolerance"),
    [("brightness", 0.8, 1e-6), ("contrast", 0.8, 1e-5), ("saturation", 0.8, 1e-5), ("hue", 0.5, 1e-5)],
)
def test_one_colour_operation_is_torchvisions(operation, half_width, tolerance):
    off = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "jitter_probability": 1}
    settings = dataclasses.replace(NOTHING, **off | {operation: half_width})
    images = some_images()
    parameters = draw_parameters(len(images), 32, 32, settings, seeded())
    ours = apply_views(images, parameters, *RAW)
    function = getattr(F, f"adjust_{operation}")
    for image, value, view in zip(images / 255, getattr(parameters, operation), ours, strict=True):
        torch.testing.assert_close(view, function(image, value.item()), atol=tolerance, rtol=0)


def test_grayscale_is_torchvisions():
    settings = dataclasses.replace(NOTHING, grayscale_probability=1)
    images = some_images()
    expected = F.rgb_to_grayscale(images / 255, 3)
    torch.testing.assert_close(make_views(images, 1, *RAW, settings)[0], expected, atol=1e-6, rtol=0)


def test_jitter_and_grayscale_in_drawn_order_are_torchvisions():
    strong = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "jitter_probability": 0.9}
    settings = dataclasses.replace(NOTHING, **strong, grayscale_probability=0.2)
    images = some_images(200)
    parameters = draw_parameters(200, 32, 32, settings, seeded())
    assert len(parameters.order.unique(dim=0)) == 24
    ours = apply_views(images, parameters, *RAW)
    theirs = torch.stack([reference_colours(image, parameters, k) for k, image in enumerate(images / 255)])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((32, 32), None), ((24, 40), None), ((41, 23), None), ((32, 32), 48), ((70, 70), 64), ((96, 80), 40)],
)
def test_resized_crop_is_pillows(shape, size):
    images = some_images(32, *shape)
    parameters = draw_parameters(32, *shape, CROP_ONLY, seeded())
    ours = apply_views(images, parameters, *RAW, size)
    out = (size, size) if size else shape
    unrounded = [pillow_float_crop(image, parameters, k, out) for k, image in enumerate(images / 255)]
    torch.testing.assert_close(ours, torch.stack(unrounded), atol=1e-5, rtol=0)
    # Pillow's uint8 images round after each pass: up to half a level, twice, the first weighted.
    rounded = torch.stack([pillow_crop(image, parameters, k, out) for k, image in enumerate(images)])
    levels = (ours * 255 - rounded).abs()
    assert levels.mean() < 0.4 and levels.max() < 1.5


def test_resized_crop_is_torchvisions_own_call():
    images = some_images()
    parameters = draw_parameters(len(images), 32, 32, CROP_ONLY, seeded())
    ours = apply_views(images, parameters, *RAW) * 255
    for k, image in enumerate(images):
        crop = parameters.crop[k].tolist()
        theirs = F.resized_crop(F.to_pil_image(image), *crop, [32, 32], F.InterpolationMode.BICUBIC)
        theirs = F.pil_to_tensor(F.hflip(theirs) if parameters.flip[k] else theirs)
        assert (ours[k] - theirs).abs().max() < 1.5


@pytest.mark.parametrize("shape", [(32, 32), (28, 36)])
def test_whole_pipeline(shape):
    images = some_images(96, *shape)
    parameters = draw_parameters(96, *shape, ViewSettings(), seeded())
    ours = apply_views(images, parameters, *CIFAR)
    coloured = [reference_colours(image, parameters, k) for k, image in enumerate(images / 255)]
    unrounded = [pillow_float_crop(image, parameters, k, shape) for k, image in enumerate(coloured)]
    torch.testing.assert_close(ours, F.normalize(torch.stack(unrounded), *CIFAR), atol=1e-4, rtol=0)
    levels = [(image * 255).round().byte() for image in coloured]
    rounded = torch.stack([pillow_crop(image, parameters, k, shape) for k, image in enumerate(levels)])
    error = (ours - F.normalize(rounded / 255, *CIFAR)).abs() * 255 * torch.tensor(CIFAR[1])[:, None, None]
    assert error.mean() < 0.5 and error.max() < 2


# What is drawn


def test_crops_are_distributed_as_torchvisions():
    ours = draw_parameters(100_000, 32, 32, ViewSettings(), seeded()).crop
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        image = torch.empty(3, 32, 32)
        theirs = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(15_000)]
    theirs = torch.tensor(theirs)
    for one, other in ((2, 3), (0, 2), (1, 3)):  # height with width, top with height, left with width
        assert_same_distribution(ours[:, one] * 33 + ours[:, other], theirs[:, one] * 33 + theirs[:, other])
    # Clamping a size that does not fit, instead of trying again, would give .594.
    assert abs((ours[:, 2] * ours[:, 3]).double().mean() / 1024 - 0.552) < 0.003
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= 32).all() and (ours[:, 2:] > 0).all()


def test_first_try_that_fits_is_taken():
    uniform = torch.full((2 + 2 * views.CROP_TRIES, 3), 0.5)
    tries = uniform[2:].unflatten(0, (2, views.CROP_TRIES))  # areas, ratios
    tries[0, :, 1], tries[1, :, 1] = 0.999, 0.999  # nearly the whole area, twice as wide as high: never fits
    tries[:, 0, 2], tries[:, 1, 2] = (
        0.999,
        0.0,
    )  # fits at the second try: 1/4 of the area, 1/2 as wide as high
    crops = views._crops(uniform, 32, 32, ViewSettings(crop_scale=(0.25, 1), crop_ratio=(0.5, 2)))
    assert crops[:, 2:].tolist() == [[25, 25], [32, 32], [23, 11]]


@pytest.mark.parametrize("shape", [(32, 32), (20, 60), (60, 20)])
@pytest.mark.parametrize("ratio", [(8.0, 9.0), (1 / 9, 1 / 8), (0.99, 1.01)])
def test_fallback_is_torchvisions(shape, ratio):
    scale = (0.999, 1.0)
    settings = dataclasses.replace(NOTHING, crop_scale=scale, crop_ratio=ratio)
    drawn = draw_parameters(50, *shape, settings, seeded()).crop.unique(dim=0)
    theirs = RandomResizedCrop.get_params(torch.empty(3, *shape), scale, ratio)
    assert drawn.tolist() == [list(theirs)]


def test_jitter_order_is_uniform_over_permutations():
    order = draw_parameters(48_000, 32, 32, ViewSettings(), seeded()).order
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24 and (order.sort(1).values == torch.arange(4)).all()
    assert ((counts - 2000.0) ** 2 / 2000).sum() < 23 + 5 * 46**0.5


def test_probabilities_and_ranges():
    count = 40_000
    p = draw_parameters(count, 32, 32, ViewSettings(), seeded())
    jittered = p.brightness != 1
    for happens, probability in ((jittered, 0.8), (p.grayscale, 0.1), (p.flip, 0.5)):
        deviation = (probability * (1 - probability) / count) ** 0.5
        assert abs(happens.float().mean() - probability) < 4 * deviation
    for values, centre, half in (
        (p.brightness, 1, 0.4),
        (p.contrast, 1, 0.4),
        (p.saturation, 1, 0.4),
        (p.hue, 0, 0.1),
    ):
        assert ((values != centre) == jittered).float().mean() > 0.9999  # all four or none
        unit = (values[jittered] - centre) / half  # uniform on -1 ... 1
        assert unit.abs().max() <= 1 + 1e-5 and abs(unit.mean()) < 0.02 and abs(unit.std() - 3**-0.5) < 0.01
    together = torch.stack([p.brightness, p.contrast, p.saturation, p.hue])[:, jittered]
    assert (torch.corrcoef(together) - torch.eye(4)).abs().max() < 0.03
    wide = draw_parameters(count, 32, 32, ViewSettings(brightness=2), seeded()).brightness
    assert wide.min() >= 0 and 2.9 < wide.max() <= 3


# Seeds, rows and devices


def test_same_seed_same_views():
    images = some_images()
    first, again, other = (make_views(images, 2, *CIFAR, generator=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    generator = seeded(3)
    assert torch.equal(make_views(images, 2, *CIFAR, generator=generator), first)
    assert not torch.equal(make_views(images, 2, *CIFAR, generator=generator), first)


def test_every_view_has_parameters_of_its_own():
    images = some_images(8)[7].expand(64, 3, 32, 32)
    result = make_views(images, 3, *CIFAR, generator=seeded())
    assert result.shape == (3, 64, 3, 32, 32) and result.dtype == torch.float32
    assert len(result.flatten(0, 1).flatten(1).unique(dim=0)) == 3 * 64


def test_views_of_an_image_stay_with_it():
    levels = torch.arange(0, 200, 20, dtype=torch.uint8)
    images = levels[:, None, None, None].expand(10, 3, 32, 32)  # one gray each, which a crop keeps
    result = make_views(images, 4, *RAW, CROP_ONLY, seeded())
    torch.testing.assert_close(result.mean((2, 3, 4)), (levels / 255).expand(4, 10), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
def test_identity_settings_give_back_the_images(shape):
    images = some_images(20, *shape)
    settings = dataclasses.replace(NOTHING, crop_ratio=(shape[1] / shape[0],) * 2)
    expected = (images / 255).expand(2, *images.shape)
    torch.testing.assert_close(make_views(images, 2, *RAW, settings), expected, atol=1e-6, rtol=0)
    jitter_of_nothing = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "jitter_probability": 1}
    settings = dataclasses.replace(settings, **jitter_of_nothing)
    torch.testing.assert_close(make_views(images, 2, *RAW, settings), expected, atol=1e-6, rtol=0)


def test_memory_layout_and_pieces_do_not_matter(monkeypatch):
    images = some_images(40, 24, 40)
    parameters = draw_parameters(40, 24, 40, ViewSettings(), seeded())
    expected = apply_views(images, parameters, *CIFAR)
    before = images.clone()
    strided = images.transpose(2, 3).contiguous().transpose(2, 3)
    for same in (strided, images.contiguous(memory_format=torch.channels_last)):
        assert not same.is_contiguous()
        torch.testing.assert_close(apply_views(same, parameters, *CIFAR), expected)
    monkeypatch.setattr(views, "CHUNK", 7 * images[0].numel())
    torch.testing.assert_close(apply_views(images, parameters, *CIFAR), expected)
    assert torch.equal(images, before)


def test_size_of_the_views():
    images = some_images(6, 96, 80)
    assert make_views(images, 2, *CIFAR).shape == (2, 6, 3, 96, 80)
    assert make_views(images, 2, *CIFAR, ViewSettings(size=64)).shape == (2, 6, 3, 64, 64)


def test_float32_under_autocast():
    images = some_images()
    expected = make_views(images, 1, *CIFAR, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(make_views(images, 1, *CIFAR, generator=seeded()), expected)


def test_no_host_sync_and_one_graph():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():  # holds no data: whatever asks for a value fails
        images = torch.zeros(6, 3, 32, 32, dtype=torch.uint8)
        assert make_views(images, 2, *CIFAR).shape == (2, 6, 3, 32, 32)
    images = some_images(6)
    parameters = draw_parameters(6, 32, 32, ViewSettings(), seeded())
    graph = torch.compile(apply_views, fullgraph=True, backend="eager")
    torch.testing.assert_close(graph(images, parameters, *CIFAR), apply_views(images, parameters, *CIFAR))


def test_compiling_the_views_silences_the_advice_on_tf32_and_no_other_warning(monkeypatch):
    def inductor(graph, inputs):
        # Both as torch words them: the first on GPUs of capability 8 and above, the second on small ones.
        advice = "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled. "
        advice += "Consider setting `torch.set_float32_matmul_precision('high')` for better performance."
        warnings.warn(advice, stacklevel=1)
        warnings.warn("Not enough SMs to use max_autotune_gemm mode", stacklevel=1)
        return graph.forward

    known = torch._dynamo.lookup_backend

    def lookup(name):
        return inductor if name == "inductor" else known(name)

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lookup)
    images = some_images(6)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compiled = make_views(images, 2, *CIFAR, generator=seeded(), compiled=True)
    texts = [str(warning.message) for warning in seen]
    assert not [text for text in texts if "TensorFloat32" in text]
    assert "Not enough SMs to use max_autotune_gemm mode" in texts
    torch.testing.assert_close(compiled, make_views(images, 2, *CIFAR, generator=seeded()))
    views._compiled.cache_clear()  # no later test meets views compiled by the stand-in


def test_one_process_compiles_views_of_as_many_shapes_as_it_meets(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)  # in place of 8, to be quick
    monkeypatch.setattr(views, "_inductor", lambda graph, inputs: graph.forward)
    for count in (2, 3, 2):
        images = some_images()[:count]
        compiled = make_views(images, 1, *CIFAR, generator=seeded(), compiled=True)
        torch.testing.assert_close(compiled, make_views(images, 1, *CIFAR, generator=seeded()))
    views._compiled.cache_clear()  # no later test meets views compiled by the stand-in


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_the_cpus_views_without_a_sync():
    images = some_images()
    expected = make_views(images, 2, *CIFAR, generator=seeded())
    on_gpu = images.cuda()
    make_views(on_gpu, 2, *CIFAR, generator=seeded())
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = make_views(on_gpu, 2, *CIFAR, generator=seeded())
        make_views(on_gpu, 2, *CIFAR, generator=torch.Generator("cuda").manual_seed(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), expected, atol=1e-3, rtol=0)


# Bad input


@pytest.mark.parametrize(
    ("images", "seen"),
    [
        (torch.zeros(4, 3, 8, 8), "float32"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\)"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"\(4, 8, 8, 3\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"\(0, 3, 8, 8\)"),
    ],
)
def test_wrong_images_are_refused(images, seen):
    with pytest.raises(ValueError, match=rf"{seen}.*give uint8 levels of shape \(n, 3, h, w\)"):
        make_views(images, 2, *CIFAR)
    with pytest.raises(ValueError, match=seen):
        apply_views(images, draw_parameters(4, 8, 8), *CIFAR)


def test_wrong_numbers_are_refused():
    images = some_images(6)
    with pytest.raises(ValueError, match="d is 0"):
        make_views(images, 0, *CIFAR)
    with pytest.raises(ValueError, match="6 images need parameters of as many views, not 5"):
        apply_views(images, draw_parameters(5, 32, 32), *CIFAR)
    with pytest.raises(ValueError, match="std"):
        make_views(images, 2, CIFAR[0], (0.2, 0.0, 0.2))
    with pytest.raises(ValueError, match="mean"):
        make_views(images, 2, (0.5,), (0.2,))
    with pytest.raises(ValueError, match="at least 1"):
        draw_parameters(0, 32, 32)


def test_blur_is_refused_for_images_in_memory():
    settings = ViewSettings(blur_probability=0.5)
    with pytest.raises(ValueError, match=r"blur_probability is 0\.5.*set it to 0"):
        make_views(some_images(6), 2, *CIFAR, settings)
    with pytest.raises(ValueError, match="blur_probability is"):
        draw_parameters(6, 32, 32, settings)
    make_views(some_images(6), 2, *CIFAR, ViewSettings(blur_radius=(1.0, 1.0)))  # never applied


def test_normalize_works_in_place_on_any_leading_shape():
    x = some_images(6).float().div(255)
    expected = F.normalize(x, *CIFAR)
    nested = x.unflatten(0, (2, 3)).clone()
    assert views.normalize_(nested, *CIFAR) is nested
    assert torch.equal(nested.flatten(0, 1), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("brightness", -0.1),
        ("contrast", float("nan")),
        ("saturation", float("inf")),
        ("hue", 0.6),
        ("jitter_probability", 1.1),
        ("grayscale_probability", -0.1),
        ("flip_probability", float("nan")),
        ("crop_scale", (0.5, 0.2)),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.2, 1.5)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (1.0, float("inf"))),
        ("blur_probability", 1.5),
        ("blur_probability", -0.1),
        ("blur_radius", (2.0, 0.1)),
        ("blur_radius", (0.0, 1.0)),
        ("blur_radius", (1.0, float("inf"))),
        ("size", 0),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is "):
        ViewSettings(**{name: value})
