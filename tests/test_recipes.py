"""Recipes hold the paper's protocol, and each could start."""

import pytest
import torch

from wmse.recipes import RECIPES, get_recipe
from wmse.training import check_recipe


def test_the_recipes_of_this_book_are_there():
    assert set(RECIPES) >= {
        "digits/w-mse-2",
        "digits/w-mse-4",
        "digits/mse",
        "cifar10/w-mse-2",
        "cifar10/w-mse-4",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_start(name):
    check_recipe(get_recipe(name), torch.device("cpu"))


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(ValueError) as caught:
        get_recipe("cifar10/w-mse-3")
    assert all(name in str(caught.value) for name in ["cifar10/w-mse-3", *RECIPES])


def test_cifar10_is_the_papers_protocol():
    two, four = get_recipe("cifar10/w-mse-2"), get_recipe("cifar10/w-mse-4")
    assert (two.positives, two.batch_size, four.positives, four.batch_size) == (2, 512, 4, 256)
    for recipe in (two, four):
        assert (recipe.encoder, recipe.projector_width, recipe.embedding_dim) == ("resnet18", 1024, 64)
        assert (recipe.slice_size, recipe.iterations, recipe.normalize) == (128, 1, True)
        assert (recipe.epochs, recipe.learning_rate, recipe.weight_decay) == (1000, 3e-3, 1e-6)
        assert (recipe.warmup_steps, recipe.lr_drops, recipe.lr_drop_factor) == (500, (50, 25), 0.2)
        views = recipe.views
        assert (views.brightness, views.contrast, views.saturation, views.hue) == (0.4, 0.4, 0.4, 0.1)
        assert (views.jitter_probability, views.grayscale_probability, views.flip_probability) == (
            0.8,
            0.1,
            0.5,
        )
        assert views.crop_scale == (0.2, 1.0) and views.crop_ratio == pytest.approx((3 / 4, 4 / 3))


def test_the_collapse_baseline_differs_in_the_loss_only():
    whitened, plain = vars(get_recipe("digits/w-mse-2")), vars(get_recipe("digits/mse"))
    assert {key for key in whitened if whitened[key] != plain[key]} == {"method"}
