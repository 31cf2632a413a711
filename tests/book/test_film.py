"""The films of chapter 7: their moments, their rounding, and the committed files, sound and small."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import film
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch

from wmse import evaluation
from wmse.data import load
from wmse.losses import w_mse_loss
from wmse.recipes import get_recipe
from wmse.run import Run

ROOT = Path(__file__).resolve().parents[2]


COMMITTED = sorted(film.FILMS.glob("*.json"))
RUNS = {"digits/mse": "MSE", "digits/w-mse-2": "W-MSE 2"}


@pytest.fixture(scope="module", params=COMMITTED, ids=lambda path: path.stem)
def committed(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def small_film():
    frame = dict.fromkeys(film.MEASURES, 1.0)
    frames = [frame | {"step": n, "epoch": n / 4, "points": [0, 1000, 500, 3]} for n in (0, 2, 4)]
    return {
        "seed": 0,
        "commit": None,
        "versions": {},
        "images": 2,
        "classes": ["0", "1"],
        "labels": [1, 0],
        "grid": 1000,
        "runs": {name: {"label": label, "frames": copy.deepcopy(frames)} for name, label in RUNS.items()},
    }


@pytest.mark.parametrize(("total", "frames"), [(1024, film.FRAMES), (200, 8), (97_000, film.FRAMES)])
def test_moments_begin_before_the_first_step_and_thin_out(total, frames):
    chosen = film.moments(total, frames)
    assert len(chosen) == frames and chosen[0] == 0 and chosen[-1] == total
    gaps = np.diff(chosen)
    assert (gaps > 0).all() and (np.diff(gaps) >= -1).all(), "never closer again, but for rounding"
    assert chosen[frames // 2] < total / 4


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="12 steps are too few"):
        film.moments(12)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda f: f.pop("seed"), "lacks seed"),
        (lambda f: f["labels"].__setitem__(0, 2), "label lies outside"),
        (lambda f: f["runs"]["digits/mse"]["frames"][1].update(epoch=0), "do not rise"),
        (lambda f: f["runs"]["digits/mse"]["frames"][0].update(epoch=0.25), "do not rise"),
        (lambda f: f["runs"]["digits/mse"]["frames"][1].pop("loss"), "no number for loss"),
        (lambda f: f["runs"]["digits/mse"]["frames"][1]["points"].pop(), "3 coordinates for 2 points"),
        (lambda f: f["runs"]["digits/mse"]["frames"][1]["points"].__setitem__(0, 1001), "outside 0 to 1000"),
        (lambda f: f["runs"]["digits/mse"]["frames"][1]["points"].__setitem__(0, 0.5), "no whole number"),
        (lambda f: f["runs"]["digits/mse"]["frames"][2].update(step=5), "not filmed at the same moments"),
    ],
)
def test_a_spoilt_film_is_found_out(spoil, complaint):
    sound = small_film()
    assert film.problems(sound) == []
    spoil(sound)
    assert any(complaint in problem for problem in film.problems(sound)), film.problems(sound)
    with pytest.raises(ValueError, match=complaint):
        film.as_text(sound)


def test_a_film_too_large_for_a_page_is_refused():
    with pytest.raises(ValueError, match="bytes are too many"):
        film.as_text(small_film() | {"padding": "x" * film.LARGEST})


def test_the_committed_film_is_sound_and_small(committed):
    assert film.problems(committed) == []
    assert [name.partition("/")[2] for name in committed["runs"]] == list(film.METHODS)
    for name, run in committed["runs"].items():
        recipe = get_recipe(name)
        images = {"digits": 2048, "cifar10": 50_000}[recipe.dataset]  # of the training split
        total = recipe.epochs * (images // recipe.batch_size)
        assert [frame["step"] for frame in run["frames"]] == film.moments(total)
        for frame in run["frames"]:
            assert 1 <= frame["effective_rank"] <= recipe.embedding_dim
            assert 0 <= frame["knn5_embeddings"] <= 100 and 0 <= frame["knn5_features"] <= 100


def test_the_committed_films_are_small():
    assert COMMITTED and all(path.stat().st_size < film.LARGEST for path in COMMITTED)


def test_the_film_of_digits_shows_the_test_images_that_there_are():
    test, committed = load("digits", "test"), json.loads((film.FILMS / "digits.json").read_text("utf-8"))
    assert committed["labels"] == test.labels[: film.IMAGES].tolist()
    assert committed["classes"] == list(test.classes) and committed["images"] == len(test)


def test_the_committed_film_says_where_it_comes_from(committed):
    assert re.fullmatch("[0-9a-f]{40}", committed["commit"]["commit"])
    assert not committed["commit"]["dirty"] or committed["note"], "a note says what differed from the commit"
    assert {"torch", "umap-learn", "numpy"} <= set(committed["versions"])


def test_both_runs_start_from_the_same_networks(committed):
    first = [run["frames"][0] for run in committed["runs"].values()]
    for key in ("effective_rank", "embedding_std", "knn5_embeddings", "knn5_features", "cca_dimensions"):
        assert first[0][key] == first[1][key], key


def test_the_file_names_the_whole_command_that_made_it(tmp_path, monkeypatch):
    rows = [dict.fromkeys(film.MEASURES, 1.0) | {"step": n, "epoch": n} for n in range(2)]
    layouts = [np.random.default_rng(n).normal(size=(film.IMAGES, 2)) for n in range(2)]
    monkeypatch.setattr(film, "film_run", lambda *_: (rows, []))
    monkeypatch.setattr(film, "align", lambda *_: layouts)
    monkeypatch.setattr(film.machine, "describe", lambda device: {"device": device.type})
    out = tmp_path / "film.json"
    film.main(["digits", "--seed", "3", "--device", "cuda", "--out", str(out)])
    made = json.loads(out.read_text("utf-8"))
    assert made["command"] == "python book/tools/film.py digits --seed 3 --device cuda"
    assert made["hardware"] == {"device": "cuda"} and len(made["labels"]) == film.IMAGES


def test_measures_leave_the_run_as_it_was():
    recipe = replace(get_recipe("digits/w-mse-2"), batch_size=64)
    sets = {split: load("digits", split, limit=128) for split in ("train", "test")}
    run = Run(recipe, 128, torch.device("cpu"))
    run.networks.train()
    before = {key: value.clone() for key, value in run.networks.state_dict().items()}
    row, cloud = film.measure(run, sets)
    assert cloud.shape == (128, recipe.embedding_dim)
    assert torch.allclose(cloud.norm(dim=1), torch.ones(128, dtype=cloud.dtype))
    assert row["step"] == 0 and set(film.MEASURES) < set(row)
    assert run.networks.training and all(
        torch.equal(before[k], v) for k, v in run.networks.state_dict().items()
    )


def test_the_loss_of_a_frame_is_of_whole_slices():
    recipe = replace(get_recipe("digits/w-mse-2"), slice_size=64, batch_size=64)
    sets = {split: load("digits", split, limit=200) for split in ("train", "test")}
    run = Run(recipe, 200, torch.device("cpu"))
    row, cloud = film.measure(run, sets)
    views = evaluation.two_views(run.encoder, run.projector, sets["test"], recipe)[:, :192]
    expected = w_mse_loss(views, 64, generator=torch.Generator().manual_seed(recipe.seed))
    assert row["loss"] == pytest.approx(float(expected), abs=1e-6) and len(cloud) == 200


def test_the_film_that_chapter_7_plays_shows_what_it_says_of_it():
    played = json.loads(COMMITTED[0].read_text("utf-8"))  # cifar10.json comes before digits.json
    mse, wmse = (run["frames"] for run in played["runs"].values())
    start = mse[0]
    assert start["embedding_std"] < 0.2, "bunched together before training"
    assert mse[-1]["knn5_embeddings"] < start["knn5_embeddings"], "MSE ends with less than it began with"
    assert mse[-1]["effective_rank"] < 2 < start["effective_rank"] < wmse[-1]["effective_rank"]
    scattered = next(f for f in wmse if f["effective_rank"] > 0.9 * wmse[-1]["effective_rank"])
    assert scattered["epoch"] < 2 and scattered["knn5_embeddings"] < 1.2 * wmse[0]["knn5_embeddings"]
    assert wmse[-1]["cca_dimensions"] > 5 * scattered["cca_dimensions"]
    widths = [np.ptp(np.array(f["points"]).reshape(-1, 2), axis=0).max() for f in mse]
    assert min(widths) > 0.4 * max(widths), "its layouts never look collapsed"


USES = re.compile(r"\b(?:records\.|film\b|frames\b|nothing_to_draw\b)")  # names that a film leaves behind


@pytest.mark.parametrize("on_record", [False, True], ids=["no film", "a film"])
def test_each_figure_of_chapter_7_is_drawn_with_and_without_a_film(on_record, tmp_path, monkeypatch, capsys):
    """Cells that have to do with the film are run; the chapter's other figures need no record."""
    path = ROOT / "notebooks" / "07_scattering.ipynb"
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    of_film = [cell for cell in code if USES.search(cell.source)]
    figures = [cell.id for cell in of_film if "figure" in cell.metadata.get("tags", [])]
    assert figures == ["fig-photographs", "fig-film", "fig-measures"], (
        "which cells depend on the film has changed"
    )

    monkeypatch.setenv("MPLBACKEND", "Agg")
    plt.switch_backend("Agg")
    monkeypatch.setenv("WMSE_RESULTS", str(film.FILMS.parent if on_record else tmp_path))
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()) or plt.close("all"))
    namespace = {"__name__": "__main__"}
    for cell in code:
        if cell in of_film or "imports" in cell.metadata.get("tags", []):
            plt.close("all")
            shown.clear()
            exec(cell.source, namespace)
            if cell.id in figures:
                assert [len(numbers) for numbers in shown] == [1], f"{cell.id}: not one image"
    assert ("is not here" in capsys.readouterr().out) != on_record
