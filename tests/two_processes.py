"""A short run for two processes: `torchrun ... tests/two_processes.py FOLDER SECONDS [--resume]`.

It saves a checkpoint after each of its 12 steps, and sleeps so many seconds before each. Its images are
noise, because `digits` would import scikit-learn, which takes a second per process.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from wmse import training
from wmse.data import ImageSet
from wmse.recipes import get_recipe
from wmse.run import Run


def main(folder: Path, seconds: float, resume: bool) -> None:
    training.CHECKPOINT_SECONDS = -1.0
    training.evaluate = lambda *_: {"linear_top1": 0.0}
    noise = torch.randint(0, 256, (200, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    noise = noise.repeat_interleave(8, -1).repeat_interleave(8, -2)  # coarse: 32 pixels hold 16 squares
    labels = torch.arange(200) % 10
    training.load = lambda *_: ImageSet("digits", noise, labels, tuple("0123456789"), (0.5,) * 3, (0.3,) * 3)
    changes = {"epochs": 4, "batch_size": 64, "slice_size": 32, "embedding_dim": 8, "projector_width": 16}
    recipe = replace(get_recipe("digits/w-mse-2"), precision="float32", **changes)
    step = Run.step

    def slow(*arguments):
        time.sleep(seconds)
        return step(*arguments)

    Run.step = slow
    training.train("digits/w-mse-2", folder, recipe, resume=resume)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), "--resume" in sys.argv)
