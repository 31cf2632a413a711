"""What only a GPU can tell. Skipped where there is none."""

from dataclasses import replace

import pytest
import torch

from wmse import numerics as deferred
from wmse import records, training
from wmse.data import ImageSet
from wmse.losses import w_mse_loss
from wmse.objectives import OBJECTIVES
from wmse.recipes import RECIPES, get_recipe
from wmse.run import start_run
from wmse.views import make_views
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
    generator = torch.Generator("cuda").manual_seed(0)
    w_mse_loss(leaf, 128, generator=generator).backward()
    request.getfixturevalue("synchronisation_is_an_error")
    for _ in range(3):
        w_mse_loss(leaf, 128, generator=generator).backward()


def test_a_singular_slice_stops_the_run_within_a_few_calls():
    bad = embeddings().cuda()
    bad[1, 128:256, 3] = bad[1, 128:256, 4]
    with pytest.raises(SingularCovarianceError, match="deferred"):
        result = whiten(bad.unflatten(1, (4, 128)))
        assert result[1, 1].isnan().all() and result[0].isfinite().all()
        for _ in range(deferred.MAX_PENDING + 1):
            whiten(embeddings().cuda().unflatten(1, (4, 128)))
    deferred.settle()


def test_views_agree_with_the_cpu_given_their_parameters():
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    generator = torch.Generator("cuda").manual_seed(0)
    views = make_views(images.cuda(), 2, (0.5,) * 3, (0.2,) * 3, generator=generator)
    assert views.is_cuda and views.shape == (2, 64, 3, 32, 32) and views.isfinite().all()


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
    run = start_run(recipe, len(images), torch.device("cuda"))
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
    deferred.settle()


@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_method_takes_steps(method):
    recipe = next(recipe for name, recipe in RECIPES.items() if recipe.method == method and "digits" in name)
    run = start_run(recipe, 2048, torch.device("cuda"))
    views = torch.randn(recipe.positives, recipe.batch_size, 3, 32, 32, device="cuda")
    labels = torch.randint(0, 10, (recipe.batch_size,), device="cuda")
    for _ in range(3):
        loss, _ = run.step(views, labels)
    deferred.settle()
    assert bool(loss.isfinite())


def test_the_step_is_benchmarked_and_profiled(tmp_path):
    from benchmarks import page, step

    flags = ["--device", "cuda", "--steps", "2", "--profile", "--out", str(tmp_path)]
    step.main(["--recipe", "cifar10/w-mse-2", *flags])
    tables = page.read(tmp_path)
    assert {"step-cifar10-w-mse-2", "profile-cifar10-w-mse-2"} == {table["benchmark"] for table in tables}
    assert all(table["rows"] and "gpu" in table["hardware"] for table in tables)
