"""Two processes by gloo give the gradient of one, and a job that loses one ends, and resumes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
import two_processes
from torch import nn
from warm_processes import warm

from wmse import distributed, records
from wmse.objectives import OBJECTIVES, WHOLE_BATCH, compute_loss
from wmse.recipes import get_recipe
from wmse.run import Run
from wmse.training import check_recipe

SMALL = {"epochs": 4, "batch_size": 64, "slice_size": 16, "embedding_dim": 8, "projector_width": 16}
OPTIONS = {
    "cw-rgp": {"embedding_dim": 64, "projector_width": 128, "groups": 2, "whitening": "zca"},
    "intl": {"embedding_dim": 96, "whitening_iterations": 4},
}

CASES = [*((method, 2) for method in OBJECTIVES), ("simclr", 3)]


def recipe_for(method, positives=2):
    """A small recipe of any method on `digits`."""
    options = SMALL | OPTIONS.get(method, {}) | {"method": method, "positives": positives}
    return replace(get_recipe("digits/w-mse-2"), precision="float32", **options)


def frozen(module):
    """BatchNorm in eval mode: processes that see other batches would normalise otherwise."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.eval()


def inputs(recipe):
    generator = torch.Generator().manual_seed(1)
    # Coarse and strong patterns: a network whose BatchNorm does not normalise hardly tells fine ones apart.
    views = 5 * torch.randn(recipe.positives, recipe.batch_size, 3, 2, 2, generator=generator)
    views = views.repeat_interleave(16, -1).repeat_interleave(16, -2)
    return views, torch.randint(0, 10, (recipe.batch_size,), generator=generator)


def gradient(run):
    return torch.cat([p.grad.flatten() for p in run.networks.parameters() if p.grad is not None])


def joined(rank, folder):
    """Become one of two processes, which meet at a file."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)


def start_two(work, folder):
    """Run `work(rank, folder)` in two processes that start warm."""
    warm()
    multiprocessing.start_processes(work, (str(folder),), nprocs=2, start_method="forkserver")


def two(rank, folder):
    """One of two processes: for each case its half of the batch, and what DDP makes of the gradients."""
    joined(rank, folder)
    for method, positives in CASES:
        recipe = recipe_for(method, positives)
        run = Run(recipe, 2048, torch.device("cpu"))
        frozen(run.model)
        views, labels = inputs(recipe)
        own = distributed.share(torch.arange(recipe.batch_size), recipe.batch_size)
        loss = run.loss(run.forward(views[:, own]), labels[own])
        loss.backward()
        found = gradient(run), distributed.mean(loss.detach())
        torch.save(found, f"{folder}/{method}-{positives}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """A folder with what two processes found for each case."""
    folder = tmp_path_factory.mktemp("two")
    start_two(two, folder)
    return folder


def one(method, positives):
    """One process on the same slices or directions: those of each process are drawn by its own generator."""
    recipe = recipe_for(method, positives)
    run = Run(recipe, 2048, torch.device("cpu"))
    frozen(run.networks.train())
    views, labels = inputs(recipe)
    outputs = run.networks(list(views))
    losses = []
    for rank in (0, 1):
        rows = slice(None) if method in WHOLE_BATCH else slice(32 * rank, 32 * rank + 32)
        part = type(outputs)(*(t if t is None else t[:, rows] for t in outputs))
        seed = run.generators["slices"].initial_seed() + (rank << 32)
        losses.append(compute_loss(recipe, part, labels[rows], torch.Generator().manual_seed(seed)))
    loss = torch.stack(losses).mean()
    loss.backward()
    return gradient(run), loss.detach()


@pytest.mark.parametrize("method, positives", CASES)
def test_two_processes_give_the_gradient_of_one(method, positives, of_two):
    expected, loss = one(method, positives)
    for rank in (0, 1):
        found, mean_loss = torch.load(of_two / f"{method}-{positives}-{rank}.pt")
        assert (found - expected).norm() < 1e-5 * expected.norm()
        torch.testing.assert_close(mean_loss, loss, rtol=1e-5, atol=1e-6)
    assert expected.norm() > 0


def fail(error):
    raise error


def alone(rank, folder):
    joined(rank, folder)
    x = torch.full((2, 3, 4), float(rank)) + torch.arange(3.0)[:, None]
    whole = distributed.gather_images(x)
    assert whole.shape == (2, 6, 4) and whole[0, :, 0].tolist() == [0, 1, 2, 1, 2, 3]
    order = distributed.share(torch.arange(11), 4)
    assert order.tolist() == ([0, 1, 4, 5] if rank == 0 else [2, 3, 6, 7])
    assert distributed.any_of(rank == 1, False) == [True, False]
    assert distributed.from_first(lambda: {"rank": distributed.rank()}) == {"rank": 0}
    assert distributed.from_all(rank) == [0, 1]
    assert distributed.first_before_others(lambda: rank) == rank
    with pytest.raises(FileExistsError if rank == 0 else distributed.ToldByFirst, match="it is there"):
        distributed.first_before_others(lambda: fail(FileExistsError("it is there")))
    assert float(distributed.mean(torch.tensor(float(rank)))) == 0.5
    recipe = recipe_for("w-mse")
    run = Run(recipe, 100, torch.device("cpu"))
    with pytest.raises(ValueError, match="written by 1 process.*now there are 2"):
        run.load_state_dict({"own": [{}]})
    with pytest.raises(ValueError, match="batch_size = 33 images cannot be shared equally by 2"):
        check_recipe(replace(recipe, batch_size=33), torch.device("cpu"))
    with pytest.raises(
        ValueError, match="each of 2 processes has 40 of a batch's 80.*n = 40.*slice_size = 16"
    ):
        check_recipe(replace(recipe, batch_size=80), torch.device("cpu"))
    with pytest.raises(ValueError, match="sync_batchnorm works on CUDA only"):
        check_recipe(replace(recipe, sync_batchnorm=True), torch.device("cpu"))
    torch.distributed.destroy_process_group()


def test_what_processes_share_and_refuse(tmp_path):
    start_two(alone, tmp_path)


def test_without_torchrun_a_process_is_alone():
    x = torch.randn(2, 4, 3, requires_grad=True)
    assert distributed.gather_images(x) is x and (distributed.rank(), distributed.size()) == (0, 1)
    assert distributed.share(torch.arange(11), 4).tolist() == list(range(8))
    assert distributed.first_before_others(lambda: 7) == 7
    with distributed.joined("cpu") as device:
        assert device.type == "cpu" and not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", ["warp", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used.*cpu"):
        distributed.choose_device(name)


# --- torchrun ------------------------------------------------------------------------------------

HANG = 300  # seconds that a job may take before it counts as hanging; a loaded machine needs many of them
SCRIPT = Path(two_processes.__file__)


def undisturbed(rank, folder):
    """One of two processes that start without torchrun, which takes seconds longer."""
    joined(rank, folder)
    two_processes.main(Path(folder, "whole"), 0, resume=False)
    torch.distributed.destroy_process_group()


def torchrun(folder, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(SCRIPT), str(folder), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def workers(job):
    """Process ids of torchrun's children."""
    return [int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are looked up in /proc")
def test_a_job_that_loses_a_process_ends_with_an_error_and_resumes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start_two(undisturbed, tmp_path)

    job = torchrun(cut, "0.3")
    deadline = time.monotonic() + HANG
    while not (cut / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(workers(job)[-1], signal.SIGKILL)
    output = job.communicate(timeout=HANG)[0]
    assert job.returncode != 0, output
    assert (cut / "checkpoint.pt").exists() and not (cut / "encoder.safetensors").exists()

    job = torchrun(cut, "0", "--resume")
    output = job.communicate(timeout=HANG)[0]
    assert job.returncode == 0, output
    assert output.count("resuming after step") == 1, "the first process speaks for all"
    record = records.read_record(cut)
    assert record.status == "finished" and record.processes == 2 and record.steps == 12
    assert [path.name for path in tmp_path.rglob("record.json")] == ["record.json"] * 2
    losses = [[row["loss"] for row in records.read_metrics(folder)] for folder in (whole, cut)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    weights = [(folder / "encoder.safetensors").read_bytes() for folder in (whole, cut)]
    assert weights[0] == weights[1]
