"""Recipes hold the paper's protocol, and each could start."""

import pytest
import torch

from wmse.recipes import RECIPES, SOLO_LEARN, get_recipe
from wmse.training import check_recipe


def test_the_recipes_of_this_book_are_there():
    methods = [
        "simclr",
        "byol",
        "w-mse-2",
        "w-mse-4",
        "barlow-twins",
        "vicreg",
        "cw-rgp-2",
        "cw-rgp-4",
        "supervised",
    ]
    budgets = ["cifar10", "cifar100", "stl10", "tiny-imagenet", "cifar10-200", "cifar10-cpu", "digits"]
    budgets += ["cifar10-25", "cifar10-laptop", "cifar100-laptop"]
    wanted = {f"{budget}/{method}" for budget in budgets for method in methods}
    floors = {f"{budget}/{floor}" for budget in budgets for floor in ("mse", "random-encoder", "raw-pixels")}
    assert set(RECIPES) >= wanted | floors | {"digits/intl", "imagenet100/w-mse-2", "imagenet100/w-mse-4"}


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


def test_every_data_set_has_the_papers_protocol():
    protocol = {  # epochs, learning rate, k, slice, w_iter of W-MSE 2, size of views, stem
        "cifar10": (1000, 3e-3, 64, 128, 1, None, "32px"),
        "cifar100": (1000, 3e-3, 64, 128, 1, None, "32px"),
        "stl10": (2000, 2e-3, 128, 256, 4, 64, "64px"),
        "tiny-imagenet": (1000, 2e-3, 128, 256, 4, None, "64px"),
        "imagenet100": (240, 2e-3, 128, 256, 1, 224, "224px"),
    }
    for dataset, expected in protocol.items():
        two, four = (get_recipe(f"{dataset}/w-mse-{d}") for d in (2, 4))
        assert (two.positives, two.batch_size, four.positives, four.batch_size) == (2, 512, 4, 256)
        assert four.iterations == 1
        found = (two.epochs, two.learning_rate, two.embedding_dim, two.slice_size, two.iterations)
        assert (*found, two.views.size, two.stem) == expected
        assert two.dataset == four.dataset == dataset


def test_imagenet100_has_views_of_its_own():
    views = get_recipe("imagenet100/w-mse-4").views
    assert (views.brightness, views.contrast, views.saturation, views.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (views.grayscale_probability, views.crop_scale) == (0.2, (0.08, 1.0))
    assert (views.blur_probability, views.blur_radius) == (0.5, (0.1, 2.0))


def test_the_rivals_have_their_protocol():
    simclr, byol = get_recipe("cifar10/simclr"), get_recipe("stl10/byol")
    assert (simclr.temperature, simclr.output_batchnorm, simclr.batch_size) == (0.5, True, 512)
    assert (byol.target_momentum, byol.embedding_dim, byol.epochs) == (0.99, 128, 2000)
    barlow, vicreg = get_recipe("cifar10/barlow-twins"), get_recipe("cifar10/vicreg")
    assert barlow.redundancy_weight == 0.008
    assert vicreg.vicreg_weights == (25, 50, 1), "25, 25, 1, with the variance terms added up"
    sizes = {  # batch, w_iter, k, slice, groups
        "cifar10/cw-rgp-2": (256, 4, 512, 64, 4),
        "cifar100/cw-rgp-2": (512, 1, 512, 64, 4),
        "stl10/cw-rgp-2": (512, 1, 512, 64, 4),
        "cifar10/cw-rgp-4": (256, 1, 512, 64, 4),
        "tiny-imagenet/cw-rgp-4": (256, 1, 1024, 128, 2),
    }
    for name, expected in sizes.items():
        r = get_recipe(name)
        assert (r.batch_size, r.iterations, r.embedding_dim, r.slice_size, r.groups) == expected
        assert r.zero_init_residual and r.whitening == "zca"
    assert get_recipe("tiny-imagenet/cw-rgp-2").projector_width == 2048


def test_budgets_change_how_much_is_computed_only():
    for budget, fields in {
        "cifar10-200": {"epochs"},
        "cifar10-25": {"epochs", "width", "warmup_steps", "cosine_schedule"},
        "cifar10-cpu": {"epochs", "width", "warmup_steps", "lr_drops"},
    }.items():
        for method in ("w-mse-2", "byol", "cw-rgp-4"):
            low, high = vars(get_recipe(f"{budget}/{method}")), vars(get_recipe(f"cifar10/{method}"))
            assert {key for key in low if low[key] != high[key]} == fields
    slim = get_recipe("cifar10-cpu/w-mse-2")
    assert (slim.epochs, slim.width) == (20, 16) and all(0 < drop < 20 for drop in slim.lr_drops)


@pytest.mark.parametrize("budget", ["cifar10-laptop", "cifar100-laptop"])
def test_all_methods_of_a_laptops_budget_take_as_many_steps_of_as_many_views(budget):
    costs = set()
    for method in ("w-mse-2", "w-mse-4", "mse", "simclr", "byol", "barlow-twins", "vicreg", "supervised"):
        r = get_recipe(f"{budget}/{method}")
        steps = 50_000 // r.batch_size * r.epochs
        costs.add((steps, steps * r.batch_size * r.positives))
        assert f"{r.dataset}-laptop" == budget and r.cosine_schedule and r.warmup_steps <= steps / 10
    assert len(costs) == 1


@pytest.mark.parametrize("budget", ["digits", "cifar10", "cifar10-200", "cifar10-cpu"])
def test_solo_learn_departs_from_the_paper_by_one_difference_at_a_time(budget):
    papers = vars(get_recipe(f"{budget}/w-mse-2"))
    seen = set()
    for name in SOLO_LEARN:
        held = vars(get_recipe(f"{budget}/w-mse-2-{name}"))
        changed = {field: held[field] for field in held if held[field] != papers[field]}
        if name == "solo-learn":
            assert set(changed) == seen
        else:
            assert len(changed) == 1 and changed.keys() == SOLO_LEARN[name].keys()
            seen |= changed.keys()
    half = get_recipe(f"{budget}/w-mse-2-half-batch")
    assert half.batch_size * 2 == papers["batch_size"] and half.slice_size == papers["slice_size"]


def test_an_unknown_recipe_is_told_the_nearest_at_the_end():
    with pytest.raises(
        ValueError, match=r"unknown recipe 'cifar10/wmse2'; there are: .*Did you mean cifar10/w-mse-2"
    ):
        get_recipe("cifar10/wmse2")
    with pytest.raises(ValueError, match=r"raw-pixels[^.]*$"):
        get_recipe("qqqqqqqq")
