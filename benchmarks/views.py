"""Making views: this package's, torchvision's of Pillow images, and kornia's if it is installed.

    python -m benchmarks.views [--device cuda] [--images 512]

All make two views an image by the protocol of CIFAR-10: colour jitter, grayscale, resized crop (bicubic),
flip, normalisation. Pillow's run on one core, as in one worker of a DataLoader; the others on one core too,
then on all, or on the GPU.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.step import noise_images
from wmse.data import ImageSet
from wmse.recipes import get_recipe
from wmse.views import Triple, ViewSettings, make_views


def pillow_views(settings: ViewSettings, mean: Triple, std: Triple, side: int) -> Callable:
    """torchvision's transforms of a Pillow image to one view (3, side, side), with these settings."""
    from torchvision import transforms as T

    strengths = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    return T.Compose(
        [
            T.RandomApply([T.ColorJitter(*strengths)], p=settings.jitter_probability),
            T.RandomGrayscale(p=settings.grayscale_probability),
            T.RandomResizedCrop(
                settings.size or side,
                scale=settings.crop_scale,
                ratio=settings.crop_ratio,
                interpolation=T.InterpolationMode.BICUBIC,
            ),
            T.RandomHorizontalFlip(p=settings.flip_probability),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def kornia_views(settings: ViewSettings, images: ImageSet, mode: str) -> Callable[[Tensor], Tensor]:
    """The same by kornia, on batches: uint8 (m, 3, h, w) to one float32 view of each.

    mode: how it crops: "slice", its default, image by image; or "resample", all at once.
    """
    import kornia.augmentation as K

    strengths = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    side = settings.size or images.images.shape[-1]
    chain = K.AugmentationSequential(
        K.ColorJitter(*strengths, p=settings.jitter_probability),
        K.RandomGrayscale(p=settings.grayscale_probability),
        K.RandomResizedCrop(
            (side, side),
            scale=settings.crop_scale,
            ratio=settings.crop_ratio,
            resample="bicubic",
            cropping_mode=mode,
        ),
        K.RandomHorizontalFlip(p=settings.flip_probability),
        K.Normalize(torch.tensor(images.mean), torch.tensor(images.std)),
        data_keys=["input"],
    ).to(images.device)
    return lambda batch: chain(batch.float().div_(255))


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parse(
        __doc__,
        ("--images", {"type": int, "help": "images a batch (512, on CUDA 4096)"}),
        ("--rounds", {"type": int, "default": 6, "help": "timed calls of each form (%(default)s)"}),
        arguments=arguments,
    )
    device = options.device
    on_gpu = device.type == "cuda"
    settings = get_recipe("cifar10/w-mse-2").views
    images = noise_images(options.images or (4096 if on_gpu else 512), device)
    generator = torch.Generator(device).manual_seed(0)

    from PIL import Image

    pixels = images.images[:256].permute(0, 2, 3, 1).contiguous().cpu().numpy()
    pictures = [Image.fromarray(picture) for picture in pixels]
    transform = pillow_views(settings, images.mean, images.std, images.images.shape[-1])
    twice = images.images.repeat(2, 1, 1, 1)
    forms: dict[str, Callable] = {
        "torchvision, Pillow": lambda: [transform(picture) for picture in pictures],
        "wmse": lambda: make_views(images.images, 2, images.mean, images.std, settings, generator),
    }
    views = {"torchvision, Pillow": len(pictures), "wmse": 2 * len(images)}
    if importlib.util.find_spec("kornia"):
        for mode in ("slice", "resample"):
            by_kornia = kornia_views(settings, images, mode)
            forms[f"kornia, {mode}"] = lambda by_kornia=by_kornia: by_kornia(twice)
            views[f"kornia, {mode}"] = 2 * len(images)
    else:
        print("kornia is not installed (pip install -r benchmarks/requirements.txt): left out")

    rows, cores = [], torch.get_num_threads()
    places = [("one core", 1)] if on_gpu or cores == 1 else [("one core", 1), (f"{cores} cores", cores)]
    per_core = 0.0
    for place, threads in places:
        torch.set_num_threads(threads)
        chosen = {name: form for name, form in forms.items() if threads == 1 or "Pillow" not in name}
        for name, seconds in measuring.medians(chosen, options.rounds, device).items():
            speed = views[name] / seconds
            per_core = per_core or speed
            where = "GPU" if on_gpu and "Pillow" not in name else place
            rows.append({"views": name, "on": where, "speed": speed, "ratio": speed / per_core})
    torch.set_num_threads(cores)
    table = measuring.Table(
        "views",
        "Two views of each image, CIFAR-10's protocol",
        {"views": "made by", "on": "on", "speed": "views/s", "ratio": "ratio to Pillow on one core"},
        rows,
        f"Medians of {options.rounds} calls in turns, {len(images)} images a batch.",
    )
    measuring.finish(table, device, options.out)


if __name__ == "__main__":
    main()
