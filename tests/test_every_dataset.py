"""A step of every data set's recipes, on a small set in its published layout."""

from dataclasses import replace

import pytest
import torch
from test_folders import tiny, write_imagenet  # noqa: F401
from test_sets import lay_out, small_cifar, small_cifar100, small_stl10  # noqa: F401
from torchvision.datasets import CIFAR10, CIFAR100, STL10

from wmse import records, training
from wmse.data import load
from wmse.data.folders import IMAGENET100
from wmse.evaluation import features, project
from wmse.recipes import RECIPES, get_recipe
from wmse.run import load_networks
from wmse.training import train

pytestmark = pytest.mark.filterwarnings("ignore:.*the published set")  # these are parts of it
SIZES = {"batch_size": 4, "slice_size": 4, "embedding_dim": 2, "projector_width": 8, "width": 16}
CHANNELS = {"slice_size": 2, "embedding_dim": 16, "groups": 2}  # of CW-RGP
DATASETS = ["cifar10", "cifar100", "stl10", "tiny-imagenet", "imagenet100"]
NAMES = [name for name in RECIPES if name.split("/")[0] in DATASETS]


@pytest.fixture
def root(request, tmp_path):
    """A folder of data that holds the set named by the test's parameter."""
    dataset = request.param
    if dataset == "cifar10":
        lay_out(tmp_path, request.getfixturevalue("small_cifar"), CIFAR10)
    elif dataset == "cifar100":
        lay_out(tmp_path, request.getfixturevalue("small_cifar100"), CIFAR100)
    elif dataset == "stl10":
        lay_out(tmp_path, request.getfixturevalue("small_stl10")[1], STL10)
    elif dataset == "tiny-imagenet":
        request.getfixturevalue("tiny")
    else:
        write_imagenet(tmp_path / "imagenet100", IMAGENET100.split())
    return tmp_path


def small(name):
    """The recipe with networks and batches that a few images can feed; its views and schedule as they are."""
    recipe = get_recipe(name)
    changes = SIZES | (CHANNELS if recipe.method == "cw-rgp" else {})
    if recipe.dataset == "stl10" and recipe.method == "supervised":
        changes |= {"batch_size": 3}  # as many as have labels
    return replace(recipe, epochs=min(1, recipe.epochs), precision="float32", whitening_eps=0.1, **changes)


@pytest.mark.parametrize("root", DATASETS, indirect=True)
def test_every_recipe_of_a_data_set_takes_a_step(root, request, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "evaluate", lambda *_: {"linear_top1": 0.0})
    dataset = request.node.callspec.params["root"]
    side = {"imagenet100": 224, "stl10": 64, "tiny-imagenet": 64}.get(dataset, 32)
    for name in (name for name in NAMES if name.startswith(f"{dataset}/")):
        recipe, out = small(name), tmp_path / "runs" / name
        limit = 8 if dataset == "imagenet100" else None
        record = records.read_record(train(name, out, recipe, data=root, device="cpu", limit=limit))
        assert record.status == "finished", name
        images = record.images["train"]
        assert record.steps == (images // recipe.batch_size if recipe.epochs else 0), name
        if recipe.encoder == "resnet18":
            encoder, projector = load_networks(out, recipe)
            rows = features(encoder, load(dataset, "test", root).first(2))
            assert rows.shape == (2, 128) and len(project(projector, rows)) == 2
            assert next(load(dataset, "test", root).first(2).batches(2)).shape == (2, 3, side, side)


@pytest.mark.parametrize("rung", ["cifar10-200", "cifar10-laptop", "cifar10-cpu"])
def test_every_recipe_of_a_rung_takes_a_step(rung, small_cifar, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(training, "evaluate", lambda *_: {"linear_top1": 0.0})
    lay_out(tmp_path, small_cifar, CIFAR10)
    for name in (name for name in RECIPES if name.startswith(f"{rung}/")):
        recipe = small(name)
        record = records.read_record(train(name, tmp_path / name, recipe, data=tmp_path, device="cpu"))
        assert record.status == "finished" and record.steps == 2 * recipe.epochs, name


def test_stl10_trains_on_all_images_and_supervision_on_those_with_labels(small_stl10, tmp_path):  # noqa: F811
    lay_out(tmp_path, small_stl10[1], STL10)
    sets = {
        name: training._load(get_recipe(f"stl10/{name}"), tmp_path, torch.device("cpu"), None)[0]
        for name in ("w-mse-2", "supervised")
    }
    assert [len(sets[name]["train"]) for name in sets] == [8, 3]
    assert [len(sets[name]["probe"]) for name in sets] == [3, 3]
