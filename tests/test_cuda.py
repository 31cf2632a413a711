"""What only a GPU can tell. Skipped where there is none.

All of these tests have passed on an NVIDIA H100, with torch 2.11. There they take less than two minutes, most
of that to compile the views for the first time.

A device that computes nothing (book/speed.md says what that is) shows devices, dtypes, shapes, recordings and
waits of the host. Three tests need no more, and pass on it too: the loss and a training step make the host
wait for nothing, and every method takes steps. The test of CUDA graphs passes there, but only shows that
everything is recorded, because it then compares constants with constants. Others need a GPU. Those that
compare with the CPU or meet a singular slice need values. The test of a refused slice reads a count from the
device, and the profile of a step needs the times of kernels.
"""

from dataclasses import replace

import pytest
import torch

from wmse import records, training
from wmse.data import ImageSet
from wmse.losses import w_mse_loss
from wmse.numerics import MAX_REFUSED, Checks
from wmse.objectives import OBJECTIVES
from wmse.recipes import RECIPES, ViewSettings, get_recipe
from wmse.run import Run
from wmse.views import apply_views, draw_parameters, make_views
from wmse.whitening import WHITENING, SingularCovarianceError, whiten

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def synchronisation_is_an_error():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def embeddings(d=2, n=512, k=64):
    return torch.randn(d, n, k, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["cholesky", "qr"])
def test_whitening_and_loss_agree_with_the_cpu(method):
    x = embeddings()
    torch.testing.assert_close(whiten(x.cuda(), method).cpu(), whiten(x, method), atol=1e-4, rtol=1e-4)
    results = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).requires_grad_()
        loss = w_mse_loss(leaf, 128, whitening=method, generator=torch.Generator().manual_seed(1))
        results.append((loss.detach().cpu(), torch.autograd.grad(loss, leaf)[0].cpu()))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-3)


def test_the_loss_makes_the_host_wait_for_nothing(request):
    leaf = embeddings().cuda().requires_grad_()
    generator, checks = torch.Generator("cuda").manual_seed(0), Checks()

    def step():
        with checks:
            w_mse_loss(leaf, 128, generator=generator).backward()

    step()
    request.getfixturevalue("synchronisation_is_an_error")
    for _ in range(3):
        step()


def test_a_singular_slice_is_refused_at_once_or_at_the_look():
    bad = embeddings().cuda()
    bad[1, 128:256, 3] = bad[1, 128:256, 4]
    bad, checks = bad.unflatten(1, (4, 128)), Checks()
    with pytest.raises(SingularCovarianceError, match=r"slice \(1, 1\)"):
        whiten(bad)
    with checks:
        result = whiten(bad)
    assert result[1, 1].isnan().all() and result[0].isfinite().all()
    with pytest.raises(SingularCovarianceError, match=r"slice \(1, 1\).*deferred"):
        checks.look()


@pytest.mark.parametrize("size", [None, 24])
def test_views_agree_with_the_cpu_given_their_parameters(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)
    how = (0.5,) * 3, (0.2,) * 3, size
    expected = apply_views(images, draw_parameters(64, 32, 32, generator=generator.manual_seed(1)), *how)
    drawn = draw_parameters(64, 32, 32, generator=generator.manual_seed(1), device="cuda")
    views = apply_views(images.cuda(), drawn, *how)
    torch.testing.assert_close(views.cpu(), expected, atol=1e-3, rtol=0)  # 1 / 5 of a 255th, in units of std
    compiled = make_views(images.cuda(), 1, *how[:2], ViewSettings(size=size), generator.manual_seed(1), True)
    torch.testing.assert_close(compiled[0].cpu(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["w-mse-2", "byol"])
def test_cuda_graphs_change_nothing_but_the_time(method):
    """Losses, weights and BatchNorm's statistics, BYOL's target included, are those without graphs."""
    recipe = replace(get_recipe(f"digits/{method}"), precision="float32")
    views = torch.randn(3, 2, recipe.batch_size, 3, 32, 32, device="cuda")
    labels, found = torch.zeros(recipe.batch_size, dtype=torch.int64, device="cuda"), []
    for graphs in (False, True):
        run = Run(replace(recipe, cuda_graphs=graphs), 2048, "cuda")
        losses = [run.step(batch, labels)[0] for batch in views]
        run.checks.look()
        assert (run._graph is not None) == (run._update[1] is not None) == graphs
        found.append([torch.stack(losses), *run.networks.state_dict().values()])
    for without, graphed in zip(*found, strict=True):
        torch.testing.assert_close(graphed, without, rtol=1e-3, atol=1e-4)


def test_a_refused_slice_leaves_weights_and_moments_as_they_are():
    recipe = replace(get_recipe("digits/w-mse-2"), precision="float32")
    run = Run(recipe, 2048, "cuda")
    views = torch.randn(2, recipe.batch_size, 3, 32, 32, device="cuda")
    labels = torch.zeros(recipe.batch_size, dtype=torch.int64, device="cuda")

    def state():
        moments = [value for values in run.optimizer.state.values() for value in values.values()]
        return [tensor.detach().clone() for tensor in (*run.networks.parameters(), *moments)]

    run.step(views, labels)
    before = state()
    for _ in range(MAX_REFUSED):
        run.checks.look()
        run.step(views[:, :1].expand_as(views), labels)
    unchanged = all(map(torch.equal, before, state()))  # not in the assertion, which would print the tensors
    assert unchanged and run.checks.refused[0] == MAX_REFUSED
    for _ in range(MAX_REFUSED):
        run.step(views[:, :1].expand_as(views), labels)
    with pytest.raises(SingularCovarianceError):
        run.checks.look()


@pytest.fixture
def noise(monkeypatch):
    """Random images in place of CIFAR-10."""

    def load(name, split, root=None, device="cpu", limit=None):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2048, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.arange(2048) % 10
        return ImageSet(name, images, labels, tuple("0123456789"), (0.5,) * 3, (0.2,) * 3).to(device)

    monkeypatch.setattr(training, "load", load)


def test_a_training_step_makes_the_host_wait_for_nothing(request, noise):
    recipe = replace(get_recipe("cifar10/w-mse-2"), batch_size=256)
    images = training.load("cifar10", "train", device="cuda")
    run = Run(recipe, len(images), torch.device("cuda"))
    steps = run.epoch(images)
    for _ in range(3):
        next(steps)
    request.getfixturevalue("synchronisation_is_an_error")
    for _ in range(3):
        next(steps)


def test_a_recipe_trains_resumes_and_is_evaluated(noise, tmp_path):
    recipe = replace(get_recipe("cifar10/w-mse-2"), epochs=2, warmup_steps=5)
    record = records.read_record(training.train("cifar10/w-mse-2", tmp_path / "run", recipe, device="cuda"))
    assert record.status == "finished" and record.hardware["device"] == "cuda"
    native = torch.cuda.get_device_capability()[0] >= 8
    assert record.precision == ("bfloat16" if native else "float16")
    training.train("cifar10/w-mse-2", tmp_path / "run", recipe, device="cuda", resume=True)


@pytest.mark.parametrize("method", WHITENING)
def test_every_whitening_agrees_with_the_cpu(method):
    x = embeddings().unflatten(1, (4, 128))
    torch.testing.assert_close(whiten(x.cuda(), method).cpu(), whiten(x, method), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_method_takes_steps(method):
    recipe = next(recipe for name, recipe in RECIPES.items() if recipe.method == method and "digits" in name)
    run = Run(recipe, 2048, torch.device("cuda"))
    views = torch.randn(recipe.positives, recipe.batch_size, 3, 32, 32, device="cuda")
    labels = torch.randint(0, 10, (recipe.batch_size,), device="cuda")
    for _ in range(3):
        loss, _ = run.step(views, labels)
    run.checks.look()
    assert bool(loss.isfinite())


def test_the_step_is_benchmarked_and_profiled(tmp_path):
    from benchmarks import page, step

    flags = ["--device", "cuda", "--steps", "2", "--profile", "--out", str(tmp_path)]
    step.main(["--recipe", "cifar10/w-mse-2", *flags])
    tables = page.read(tmp_path)
    assert {"step-cifar10-w-mse-2", "profile-cifar10-w-mse-2"} == {table["benchmark"] for table in tables}
    assert all(table["rows"] and "gpu" in table["hardware"] for table in tables)
