"""An exported encoder gives the features of the run, in `wmse` and by the code of its own card."""

import re
from dataclasses import replace

import export
import pytest
import torch

from wmse import evaluation
from wmse.data import load, sets
from wmse.recipes import get_recipe
from wmse.records import read_record
from wmse.run import load_networks
from wmse.training import evaluate_run, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short finished run of a slim ResNet-18, on the embedded images."""
    slim = {"encoder": "resnet18", "width": 8, "stem": "64px", "epochs": 1, "embedding_dim": 8}
    recipe = replace(get_recipe("digits/w-mse-2"), batch_size=64, slice_size=32, **slim)
    return train("digits/w-mse-2", tmp_path_factory.mktemp("run") / "x", recipe, limit=192)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The export of that run, as if it had seen all images of a set with published statistics."""
    images, record = load("digits", "test"), read_record(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sets.STATISTICS, "digits", (images.mean, images.std))
        patch.setattr(export.records, "read_record", lambda _: record.model_copy(update={"limit": None}))
        return export.export(run, tmp_path_factory.mktemp("encoders"))


def test_the_export_is_evaluated_as_the_run_is(run, exported):
    assert exported.name == "digits-w-mse-2"
    assert {path.name for path in exported.iterdir()} == {*export.NETWORKS, "record.json", "README.md"}
    own, again = read_record(run).metrics, evaluate_run(exported)
    assert set(own) <= set(again)
    for key in ("linear_top1", "knn5_euclidean_top1"):
        assert abs(own[key] - again[key]) < 3, "float16 rounds the weights"


def test_the_weights_take_half_the_room_and_keep_three_digits(run, exported):
    for name in export.NETWORKS:
        own, half = (export.read_weights(folder / name) for folder in (run, exported))
        for key, value in own.items():
            torch.testing.assert_close(half[key].to(value.dtype), value, rtol=1e-3, atol=1e-6)
        assert all(value.dtype == torch.float16 for value in half.values() if value.is_floating_point())


def test_the_card_builds_the_network_in_plain_torchvision(exported, monkeypatch):
    images = load("digits", "test")
    code = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text("utf-8"), re.DOTALL)[1]
    assert "wmse" not in code
    monkeypatch.chdir(exported)
    pixels = images.images[:20].float() / 255
    code = re.sub(r"images = torch\.rand.*", "images = pixels", code)
    namespace = {"pixels": pixels}
    with torch.inference_mode():
        exec(code, namespace)
    encoder, _ = load_networks(exported, read_record(exported).recipe)
    expected = evaluation.features(encoder, images.first(20))
    torch.testing.assert_close(namespace["features"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"status": "failed"}, "is failed"),
        ({"scored_on": "validation"}, "scored on validation"),
        ({}, "finished run"),
    ],
)
def test_only_whole_runs_on_test_images_are_exported(run, tmp_path, monkeypatch, keys, complaint):
    record = read_record(run).model_copy(update=keys)  # it has a limit
    monkeypatch.setattr(export.records, "read_record", lambda _: record)
    with pytest.raises(ValueError, match=complaint):
        export.export(run, tmp_path / "encoders")
    assert not (tmp_path / "encoders").exists()


def test_weights_beyond_half_precision_are_refused(run, tmp_path, monkeypatch):
    record = read_record(run).model_copy(update={"limit": None})
    monkeypatch.setattr(export.records, "read_record", lambda _: record)
    monkeypatch.setitem(sets.STATISTICS, "digits", ((0.5,) * 3, (0.5,) * 3))
    monkeypatch.setattr(export, "read_weights", lambda path: {"weight": torch.tensor([1e6])})
    with pytest.raises(ValueError, match="float16's range"):
        export.export(run, tmp_path)
