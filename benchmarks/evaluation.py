"""Scoring representations: k-NN against scikit-learn's, and an evaluation as a whole.

    python -m benchmarks.evaluation [--device cuda]

The features are noise around ten class centres, as many and as wide as ResNet-18's of CIFAR-10 on a GPU, and
a tenth as many on a CPU. The whole is what follows a run: features, probes, k-NN, measures of collapse.
"""

import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.step import noise_images
from wmse.evaluation import evaluate, knn_accuracy
from wmse.recipes import get_recipe
from wmse.run import Run


def clusters(count: int, width: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features (count, width) float32 around ten centres, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, width, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 10, (count,), generator=generator)
    rows = centres[labels] + 6 * torch.randn(count, width, generator=generator)  # hard to tell apart
    return rows.to(device), labels.to(device)


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parse(
        __doc__,
        ("--rows", {"type": int, "help": "features to learn from (50,000 on CUDA, 5,000 on a CPU)"}),
        ("--rounds", {"type": int, "default": 3, "help": "timed calls of each form (%(default)s)"}),
        arguments=arguments,
    )
    device = options.device
    on_gpu = device.type == "cuda"
    count = options.rows or (50_000 if on_gpu else 5_000)
    train, labels = clusters(count, 512, 1, device)
    test, answers = clusters(count // 5, 512, 2, device)
    rows = []

    def compare(what: str, plain_name: str, plain, ours) -> None:
        """A row, after a check that both are right as often: within three points of each other."""
        scores = plain(), ours()
        assert abs(scores[0] - scores[1]) < 3, f"{what}: {scores[0]} by {plain_name}, {scores[1]} by wmse"
        assert 20 < scores[0] < 98, f"{what}: {scores[0]}% would hide a difference"
        times = measuring.medians({"plain": plain, "wmse": ours}, options.rounds, device)
        rows.append(
            {"what": what, "against": plain_name, "plain": times["plain"], "wmse": times["wmse"]}
            | {"ratio": times["plain"] / times["wmse"]}
        )

    def sklearn_knn() -> float:
        from sklearn.neighbors import KNeighborsClassifier

        known = KNeighborsClassifier(5, algorithm="brute").fit(train.cpu().numpy(), labels.cpu().numpy())
        return 100 * known.score(test.cpu().numpy(), answers.cpu().numpy())

    compare(
        f"5-NN, {count // 5:,} queries in {count:,} rows",
        "scikit-learn, brute force",
        sklearn_knn,
        lambda: knn_accuracy(train, labels, test, answers),
    )

    of = "cifar10" if on_gpu else "digits"
    recipe = get_recipe(f"{of}/w-mse-2")
    probe = noise_images(50_000 if on_gpu else 2048, device)
    held_out = noise_images(10_000 if on_gpu else 2048, device)
    run = Run(recipe, len(probe), device)
    whole = measuring.seconds(lambda: evaluate(run.encoder, run.projector, probe, held_out, recipe), device)
    rows.append({"what": f"a run's evaluation, images as many as {of} has", "wmse": whole})
    table = measuring.Table(
        "evaluation",
        "Scoring representations",
        {"what": "what", "against": "against", "plain": "that, s", "wmse": "wmse, s", "ratio": "ratio"},
        rows,
        f"512 features an image; medians of {options.rounds} calls in turns, the answers checked to agree. "
        "The whole evaluation: features, probes on all, a tenth and a hundredth of the labels, k-NN by two "
        "distances, measures of collapse; once.",
    )
    measuring.finish(table, device, options.out)


if __name__ == "__main__":
    main()
