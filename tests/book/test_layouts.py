"""The pictures of CIFAR-10: what the tool writes of a run, what it refuses, and the committed file."""

import copy
import json
from dataclasses import replace

import layouts
import numpy as np
import pytest
import torch

from wmse import training
from wmse.data import load
from wmse.recipes import get_recipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short finished runs, of two methods; their scores are made up, because the probes take long."""
    root = tmp_path_factory.mktemp("runs")
    short = {"epochs": 1, "batch_size": 128, "slice_size": 128, "embedding_dim": 8}
    names = ("digits/mse", "digits/w-mse-2")
    chosen = {name: replace(get_recipe(name), **short) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "evaluate", lambda *_: {"linear_top1": 12.345})
        return [training.train(name, root / name[7:], recipe, limit=512) for name, recipe in chosen.items()]


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("pictures") / "digits.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "IMAGES", 60)
        patch.setattr(layouts, "SEEDS", (0, 1))
        layouts.main([*map(str, runs), "--out", str(out)])
    return json.loads(out.read_text("utf-8"))


def test_the_file_holds_each_run_with_its_layouts_and_measures(made):
    test = load("digits", "test")
    assert layouts.problems(made) == []
    assert made["labels"] == test.labels[:60].tolist() and made["images"] == len(test)
    assert [run["label"] for run in made["runs"].values()] == ["MSE", "W-MSE 2"]
    for run in made["runs"].values():
        assert len(run["layouts"]) == 2 and run["layouts"][0] != run["layouts"][1]
        assert 1 <= run["measures"]["effective_rank"] <= 8
        assert run["measures"]["linear_features"] == pytest.approx(12.345, abs=0.006)
        np.testing.assert_allclose(run["spectra"]["whitened"], 1, atol=1e-3)


def test_no_image_is_in_the_file(made):
    longest = max(len(run["plane"]) for run in made["runs"].values())
    assert longest == 2 * 60, "nothing but two coordinates per image"


def test_the_plane_keeps_the_largest_variances_and_not_the_sign():
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(400, 6, generator=generator, dtype=torch.float64) * torch.tensor([5, 3, 1, 1, 1, 1])
    plane = layouts.principal_plane(cloud)
    values = torch.linalg.eigvalsh(torch.cov(cloud.T)).flip(0)
    torch.testing.assert_close(plane.var(0), values[:2])
    torch.testing.assert_close(layouts.principal_plane(-cloud).abs(), plane.abs())
    assert (plane.amax(0) >= -plane.amin(0)).all()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda f: f.pop("seeds"), "lacks seeds"),
        (lambda f: f["labels"].__setitem__(0, 10), "label lies outside 0 to 9"),
        (lambda f: f["runs"]["digits/mse"]["measures"].pop("cca_dimensions"), "no number for cca_dimensions"),
        (lambda f: f["runs"]["digits/mse"]["layouts"].pop(), "1 layouts for 2 seeds"),
        (lambda f: f["runs"]["digits/mse"]["plane"].pop(), "119 coordinates for 60 points"),
        (lambda f: f["runs"]["digits/mse"]["layouts"][0].__setitem__(3, 2000), "outside 0 to 1000"),
        (lambda f: f["runs"]["digits/w-mse-2"]["spectra"]["embeddings"].reverse(), "do not descend"),
    ],
)
def test_a_spoilt_file_is_found_out(made, spoil, complaint):
    spoilt = copy.deepcopy(made)
    spoil(spoilt)
    with pytest.raises(ValueError, match=complaint):
        layouts.as_text(spoilt)


def test_runs_that_do_not_belong_together_are_refused(runs, capsys, tmp_path):
    with pytest.raises(SystemExit):
        layouts.main(
            [str(runs[0]), str(runs[0].parent / "mse" / "." / ".." / "mse"), "--out", str(tmp_path / "x")]
        )
    assert "one run for each recipe" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_committed_file_is_sound_and_small():
    if not layouts.PICTURES.exists():
        pytest.skip("no pictures of CIFAR-10 are on record")
    text = layouts.PICTURES.read_text("utf-8")
    assert len(text) < layouts.LARGEST and layouts.problems(json.loads(text)) == []
