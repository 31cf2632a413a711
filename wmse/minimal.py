"""W-MSE on one page: whitening for self-supervised learning (Ermolov et al., ICML 2021), on CIFAR-10.

    python -m wmse.minimal --limit 2048 --epochs 1     # a trial, minutes on one processor core
    python -m wmse.minimal --device cuda --bf16        # the paper's 1000 epochs

This page needs torch and torchvision alone: copy it and change it. It checks nothing; `wmse.losses` does.
Shapes: d views of n images become embeddings (d, n, k), here d = 2, n = 512, k = 64.
"""

import argparse
import os
import time

import torch
import torchvision.transforms as T
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, MultiStepLR
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from torchvision.models import resnet18

BATCH, SLICE, K = 512, 128, 64  # a slice needs more than K images: take 2K
NORMALISE = T.Compose([T.ToTensor(), T.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))])
VIEW = [
    T.RandomApply([T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)], p=0.8),
    T.RandomGrayscale(p=0.1),
    T.RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC),
    T.RandomHorizontalFlip(),
    NORMALISE,
]


def whiten(x: Tensor) -> Tensor:
    """Give each slice of x (..., n, k), n > k, mean 0 and covariance I: z = W (v - mean), W^T W = C^-1."""
    x = x - x.mean(-2, keepdim=True)
    covariance = x.mT @ x / (x.shape[-2] - 1)
    factor = torch.linalg.cholesky(covariance)  # C = L L^T, and W = L^-1
    return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT


def w_mse_loss(embeddings: Tensor, slice_size: int) -> Tensor:
    """Mean distance 2 - 2 cos of whitened positives, over all pairs of views; embeddings (d, n, k)."""
    d, n, _ = embeddings.shape
    order = torch.randperm(n, device=embeddings.device)  # one permutation for all views: positives stay so
    slices = embeddings[:, order].unflatten(1, (-1, slice_size))  # (d, n / slice_size, slice_size, k)
    z = nn.functional.normalize(whiten(slices), dim=-1)
    first, second = torch.combinations(torch.arange(d, device=z.device)).T  # the d(d-1)/2 pairs
    return 2 - 2 * (z[first] * z[second]).sum(-1).mean()


def two_views(image) -> list[Tensor]:
    return [T.Compose(VIEW)(image) for _ in range(2)]


def build_networks() -> tuple[nn.Module, nn.Module]:
    """ResNet-18 with a stem for 32 pixels, images to 512 features; a projector, features to embeddings."""
    encoder = resnet18()
    encoder.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    encoder.maxpool = encoder.fc = nn.Identity()
    return encoder, nn.Sequential(nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, K))


def cifar10(root: str, limit: int | None, train: bool, transform) -> CIFAR10:
    """The first `limit` images of CIFAR-10 under `root`, downloaded if they are not there."""
    try:
        images = CIFAR10(root, train, transform, download=not os.path.isdir(f"{root}/{CIFAR10.base_folder}"))
    except (OSError, RuntimeError) as error:
        advice = f"Unpack {CIFAR10.url} there, or name the folder that has it: --data DIR"
        raise SystemExit(f"no whole CIFAR-10 in {root!r}: {error}\n{advice}") from error
    images.data, images.targets = images.data[:limit], images.targets[:limit]
    return images


@torch.no_grad()
def features(encoder: nn.Module, images: CIFAR10, device: str) -> tuple[Tensor, Tensor]:
    """Features (n, 512) and labels (n,) of images without augmentation."""
    encoder.eval()
    rows = [(encoder(x.to(device)), labels.to(device)) for x, labels in DataLoader(images, BATCH)]
    return tuple(map(torch.cat, zip(*rows, strict=True)))


def knn_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, labels: Tensor, k: int = 5) -> float:
    """Percent of test rows whose class is the commonest among their k nearest training rows."""
    nearest = [torch.cdist(rows, train).topk(k, largest=False).indices for rows in test.split(1000)]
    votes = nn.functional.one_hot(train_labels[torch.cat(nearest)]).sum(1)
    return 100 * (votes.argmax(1) == labels).float().mean().item()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("wmse.minimal", description="Train W-MSE on CIFAR-10, then score 5-NN.")
    parser.add_argument("--data", default=os.environ.get("WMSE_DATA") or "data", help="folder of CIFAR-10")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--limit", type=int, help=f"images to take of each split, at least {BATCH}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="networks in bfloat16, where that is native")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    images = cifar10(args.data, args.limit, train=True, transform=two_views)
    options = {"num_workers": min(16, os.cpu_count()), "persistent_workers": True}  # views are made ahead
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True, **options)
    if not len(loader):
        parser.error(f"{len(images)} images make no batch: --limit must be at least {BATCH}")
    encoder, projector = (network.to(args.device) for network in build_networks())
    optimizer = torch.optim.Adam([*encoder.parameters(), *projector.parameters()], lr=3e-3, weight_decay=1e-6)
    warmup = LinearLR(optimizer, start_factor=1 / 500, total_iters=499)  # over 500 steps
    drops = MultiStepLR(optimizer, [args.epochs - 50, args.epochs - 25], gamma=0.2)  # after epochs
    steps, start = args.epochs * len(loader), time.time()
    for epoch in range(args.epochs):
        for step, (views, _) in enumerate(loader, start=epoch * len(loader) + 1):
            with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bf16):
                outputs = [encoder(view.to(args.device)) for view in views]  # BatchNorm sees a view at a time
                embeddings = projector(torch.cat(outputs)).unflatten(0, (len(views), -1))
            loss = w_mse_loss(embeddings.float(), SLICE)  # whitening needs float32
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            warmup.step()
            eta = (time.time() - start) / step * (steps - step) / 60
            progress = f"epoch {epoch + 1}  step {step}/{steps}  loss {loss:.3f}  ETA {eta:.1f} minutes"
            print(f"\r{progress} ", end="", flush=True)
        drops.step()
        print()
    plain = (cifar10(args.data, args.limit, train, NORMALISE) for train in (True, False))
    train, test = (features(encoder, images, args.device) for images in plain)
    print(f"5-NN on the features of {len(test[1]):,} test images: {knn_accuracy(*train, *test):.2f}% correct")


if __name__ == "__main__":
    main()
