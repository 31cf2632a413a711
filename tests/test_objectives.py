"""Each method trains on `digits` for a few steps, and minimises the loss that it is named for."""

from dataclasses import replace

import pytest
import torch

from wmse import losses, records, training
from wmse.data import load
from wmse.networks import Outputs
from wmse.objectives import OBJECTIVES, check_method, compute_loss
from wmse.recipes import RECIPES, get_recipe
from wmse.run import Run, load_networks
from wmse.training import train

DIGITS = [name for name in RECIPES if name.startswith("digits/")]


@pytest.mark.parametrize("name", DIGITS)
def test_each_recipe_of_digits_trains_for_a_few_steps(name, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "evaluate", lambda *_: {"linear_top1": 0.0})
    recipe = get_recipe(name)
    recipe = replace(recipe, epochs=min(recipe.epochs, 2), precision="float32")
    record = records.read_record(train(name, tmp_path / "run", recipe, limit=recipe.batch_size * 2))
    assert record.status == "finished" and record.steps == 2 * recipe.epochs
    assert all(row["loss"] == row["loss"] for row in record.curve)
    encoder, projector = load_networks(tmp_path / "run", recipe)
    images = load("digits", "test").first(4)
    assert projector(encoder(images.normalized())).shape[0] == 4


@pytest.mark.parametrize("method", OBJECTIVES)
def test_a_step_changes_every_parameter_that_is_trained(method):
    name = next(n for n in DIGITS if get_recipe(n).method == method)
    recipe = replace(get_recipe(name), precision="float32", weight_decay=0.0)
    run = Run(recipe, 2048, torch.device("cpu"))
    trained = {n: p.clone() for n, p in run.networks.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(recipe.positives, recipe.batch_size, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (recipe.batch_size,), generator=generator)
    loss, embeddings = run.step(views, labels)
    assert loss.isfinite() and embeddings.shape[:2] == (recipe.positives, recipe.batch_size)
    still = {n for n, p in run.networks.named_parameters() if n in trained and torch.equal(p, trained[n])}
    # A shift of all embeddings changes no loss that centres them.
    assert still <= {"projector.3.bias", "projector.0.bias"}
    if method == "byol":
        follower = next(run.networks.target.parameters())
        assert not torch.equal(follower, next(run.networks.encoder.parameters()))


def test_the_objective_is_the_loss_of_that_name():
    x = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0))
    recipe = replace(get_recipe("digits/simclr"), temperature=0.2)
    torch.testing.assert_close(loss_of(recipe, x), losses.nt_xent_loss(x, 0.2))
    torch.testing.assert_close(loss_of(get_recipe("digits/vicreg"), x), losses.vicreg_loss(x, 25, 50, 1))
    euclidean = replace(get_recipe("digits/mse"), normalize=False)
    torch.testing.assert_close(loss_of(euclidean, x), losses.mse_loss(x, False))
    white = replace(
        get_recipe("digits/w-mse-2"), slice_size=32, whitening="zca", iterations=3, normalize=False
    )
    expected = losses.w_mse_loss(x, 32, 3, False, "zca", torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss_of(white, x), expected)


def loss_of(recipe, embeddings):
    labels = torch.zeros(embeddings.shape[1], dtype=torch.int64)
    return compute_loss(recipe, Outputs(embeddings), labels, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "dino"}, "unknown method 'dino'.*" + ".*".join([*OBJECTIVES, "none"])),
        ({"slice_size": 48}, "n = 128.*slice_size = 48"),
        ({"detach_second": True, "positives": 3}, "detach_second .* 2 positives; got w-mse with 3"),
        ({"detach_second": True, "method": "mse"}, "detach_second .*got mse with 2"),
        ({"method": "cw-rgp", "groups": 3}, "k = 32.*3 groups"),
        ({"method": "simclr", "positives": 1}, "d = 1"),
        ({"method": "supervised", "positives": 0}, "positives = 0"),
        ({"method": "intl"}, "embedding_dim = 32.*128 images.*129"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_before_the_first_step(changes, message):
    with pytest.raises(ValueError, match=message):
        check_method(replace(get_recipe("digits/w-mse-2"), **changes), 128)


def test_a_detached_second_view_leaves_the_value_and_the_first_views_gradient():
    x = torch.randn(2, 128, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = {}
    for detach in (False, True):
        views = x.clone().requires_grad_()
        recipe = replace(get_recipe("digits/w-mse-2"), detach_second=detach)
        loss = loss_of(recipe, views)
        loss.backward()
        found[detach] = loss.detach(), views.grad
    torch.testing.assert_close(found[True][0], found[False][0], rtol=0, atol=0)
    torch.testing.assert_close(found[True][1][0], found[False][1][0])
    assert found[False][1][1].norm() > 0 and not found[True][1][1].any()
