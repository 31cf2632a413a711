"""The method on one page: short, on its own, equal to the package, and it runs."""

import ast
import inspect

import pytest
import torch
from test_sets import lay_out, small_cifar  # noqa: F401
from torchvision.datasets import CIFAR10

from wmse import losses, minimal, whitening
from wmse.networks import build_encoder, build_projector
from wmse.recipes import get_recipe
from wmse.run import learning_rate


def test_it_is_one_page_and_needs_torch_and_torchvision_alone():
    source = inspect.getsource(minimal)
    assert len(source.splitlines()) <= 130
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports: the page is to be copied"
            imported.add(node.module.split(".")[0])
    assert imported == {"argparse", "os", "time", "torch", "torchvision"}


@pytest.mark.parametrize(("d", "n", "k", "slice_size"), [(2, 64, 8, 16), (4, 32, 5, 32)])
def test_loss_and_gradient_are_the_packages(d, n, k, slice_size):
    values = torch.randn(d, n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = values @ torch.linspace(1, 3, k, dtype=torch.float64).diag() + 2  # neither centred nor white
    results = []
    for loss_of in (minimal.w_mse_loss, losses.w_mse_loss):
        embeddings = values.clone().requires_grad_()
        torch.manual_seed(1)  # the same permutation
        loss = loss_of(embeddings, slice_size)
        loss.backward()
        results.append((loss.detach(), embeddings.grad))
    (loss, gradient), (expected_loss, expected_gradient) = results
    torch.testing.assert_close(loss, expected_loss, atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-13, rtol=1e-11)
    assert expected_gradient.abs().max() > 1e-4


def test_whitening_is_the_packages():
    slices = torch.randn(3, 20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    torch.testing.assert_close(minimal.whiten(slices), whitening.whiten(slices), atol=1e-12, rtol=1e-12)


def test_networks_are_those_of_the_papers_recipe():
    recipe = get_recipe("cifar10/w-mse-2")
    expected = (
        build_encoder(recipe.encoder, recipe.stem),
        build_projector(512, recipe.projector_width, recipe.embedding_dim),
    )
    assert (minimal.BATCH, minimal.SLICE, minimal.K) == (
        recipe.batch_size,
        recipe.slice_size,
        recipe.embedding_dim,
    )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    for network, same, x in zip(minimal.build_networks(), expected, (images, rows), strict=True):
        same.load_state_dict(network.state_dict())
        torch.testing.assert_close(network(x), same(x))


@pytest.fixture
def tiny(small_cifar, tmp_path, monkeypatch):  # noqa: F811
    """CIFAR-10 of ten images under `tmp_path`, and a page that trains on batches of four of them."""
    lay_out(tmp_path, small_cifar)
    for name, value in {"BATCH": 4, "SLICE": 4, "K": 2}.items():
        monkeypatch.setattr(minimal, name, value)
    return tmp_path


def test_it_runs_from_end_to_end(tiny, capsys, monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def recorded(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    minimal.main(["--data", str(tiny), "--epochs", "2", "--limit", "9", "--device", "cpu"])
    *progress, score = capsys.readouterr().out.replace("\r", "\n").strip().splitlines()
    assert [line.split("  loss")[0] for line in progress if line] == [
        f"epoch {epoch}  step {step}/4" for epoch, step in ((1, 1), (1, 2), (2, 3), (2, 4))
    ]
    assert progress[-1].split("ETA")[1].strip() == "0.0 minutes"
    assert score in {
        f"5-NN on the features of 2 test images: {s}% correct" for s in ("0.00", "50.00", "100.00")
    }
    recipe = get_recipe("cifar10/w-mse-2")
    assert rates == pytest.approx([learning_rate(recipe, step, 2) for step in range(4)], rel=1e-6)


def test_too_few_images_for_a_batch_are_refused(tiny, capsys):
    with pytest.raises(SystemExit):
        minimal.main(["--data", str(tiny), "--limit", "3", "--device", "cpu"])
    assert "3 images make no batch: --limit must be at least 4" in capsys.readouterr().err


def test_without_cifar10_it_says_where_to_get_it(small_cifar, tmp_path):  # noqa: F811
    with pytest.raises(SystemExit) as error:
        minimal.main(["--data", str(tmp_path / "absent"), "--device", "cpu"])
    assert all(word in str(error.value) for word in (CIFAR10.url, str(tmp_path / "absent"), "--data DIR"))
