"""A folder of a user's own images: odd files are read or left out; it trains, evaluates, gives an encoder."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wmse
from wmse import records
from wmse.__main__ import main
from wmse.data import ImageSet, StreamedSet, load_own, load_validation
from wmse.data.reading import read_rgb
from wmse.recipes import at_size, get_recipe
from wmse.training import evaluate_run, train

PER_CLASS = 20
ORIENTATION = 0x0112
TINY = {"batch_size": 16, "slice_size": 16, "embedding_dim": 4, "projector_width": 16, "width": 8}
TINY |= {"epochs": 2, "precision": "float32"}
QUICK = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def photo(rng: np.random.RandomState, colour: int) -> Image.Image:
    """Noise of random height and width that is bright in one channel."""
    levels = rng.randint(0, 100, (*rng.randint(20, 70, 2), 3))
    levels[..., colour] += 120
    return Image.fromarray(levels.astype(np.uint8))


def fill(folder: Path, colours=("red", "green", "blue")) -> Path:
    """A folder per colour; among its images are those of odd modes, and one turned by its EXIF data."""
    rng = np.random.RandomState(0)
    for channel, name in enumerate(colours):
        (folder / name / "deeper").mkdir(parents=True)
        for number in range(PER_CLASS):
            place = folder / name / ("deeper" if number % 2 else "")
            photo(rng, channel).save(place / f"{number:02}.png")
    grey = Image.fromarray(rng.randint(0, 255, (40, 30)).astype(np.uint8))
    grey.save(folder / colours[0] / "grey.jpg")
    photo(rng, 0).convert("P").save(folder / colours[0] / "palette.gif")
    photo(rng, 0).convert("RGBA").save(folder / colours[0] / "alpha.PNG")
    photo(rng, 0).convert("CMYK").save(folder / colours[0] / "print.jpeg")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photo(rng, 0).save(folder / colours[0] / "turned.jpg", exif=exif)
    return folder


def damage(folder: Path) -> set[str]:
    """Three files that cannot be read, and one that is no image; the paths of the three."""
    whole = (folder / "red" / "grey.jpg").read_bytes()
    (folder / "red" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "green" / "empty.png").touch()
    os.symlink(folder / "nowhere.png", folder / "blue" / "link.png")
    (folder / "green" / "notes.txt").write_text("no image")
    return {"red/cut.jpg", "green/empty.png", "blue/link.png"}


@pytest.mark.parametrize("size", [32, 224])
def test_odd_files_are_read_and_damaged_ones_named_and_left_out(size, tmp_path):
    bad = damage(fill(tmp_path / "mine"))
    with pytest.warns(UserWarning, match=r"3 of 68 files are left out: .*empty\.png"):
        sets, facts = load_own(tmp_path / "mine", size)
    assert set(facts["left_out"]) == bad and all(facts["left_out"].values())
    assert facts["classes"] == ["blue", "green", "red"]
    train, test = sets["train"], sets["test"]
    assert isinstance(train, StreamedSet if size == 224 else ImageSet)
    assert len(train) == 59 and test.labels.bincount().tolist() == [2, 2, 2]
    for images in (train, test):  # the channel that is bright tells the class: labels are those of the images
        images = replace(images, workers=0) if size == 224 else images
        (shown,) = images.batches(100)
        assert shown.shape[1:] == (3, size, size)
        levels = (shown * torch.tensor(images.std)[:, None, None]).mean((2, 3)) + torch.tensor(images.mean)
        coloured = levels.amax(1) - levels.amin(1) > 0.2  # the grey image has no such channel
        assert int((~coloured).sum()) <= 1
        assert (2 - levels.argmax(1) == images.labels)[coloured].all()


def test_exif_turns_an_image_only_where_it_is_asked_to(tmp_path):
    levels = np.zeros((20, 40, 3), np.uint8)
    levels[:, :20] = 255  # white on the left: on top, once it is turned right by 90 degrees
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(levels).save(tmp_path / "a.png", exif=exif)
    turned = np.asarray(read_rgb(str(tmp_path / "a.png"), upright=True))
    assert turned.shape == (40, 20, 3) and turned[:19].min() == 255 and turned[21:].max() == 0
    assert np.array_equal(read_rgb(str(tmp_path / "a.png")), levels)


def test_mean_and_deviation_are_those_of_the_training_images(tmp_path):
    sets, facts = load_own(fill(tmp_path / "mine"), 32)
    pixels = sets["train"].images.transpose(0, 1).flatten(1).double() / 255
    torch.testing.assert_close(torch.tensor(facts["mean"]).double(), pixels.mean(1), rtol=0, atol=1e-7)
    expected = pixels.std(1, correction=0)
    torch.testing.assert_close(torch.tensor(facts["std"]).double(), expected, rtol=0, atol=1e-7)
    (tmp_path / "black").mkdir()
    for number in range(20):
        Image.new("L", (9, 9)).save(tmp_path / "black" / f"{number}.png")
    assert min(load_own(tmp_path / "black", 32)[1]["std"]) > 0


def test_the_held_out_share_is_the_same_each_time_and_apart(tmp_path):
    first, second = (load_own(folder, 32)[0] for folder in [fill(tmp_path / "mine")] * 2)
    assert all(first[split].fingerprint() == second[split].fingerprint() for split in first)
    held_out = {image.numpy().tobytes() for image in first["test"].images}
    assert not held_out & {image.numpy().tobytes() for image in first["train"].images}


def test_class_folders_train_evaluate_and_give_an_encoder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    damage(fill(tmp_path / "mine"))
    with pytest.warns(UserWarning, match="3 of 68"):
        assert main(["train", "folder/w-mse-2", "--data", "mine", "--out", "run", *QUICK]) == 0
    record = records.read_record("run")
    assert record.status == "finished" and record.steps == 2 * (59 // 16)
    assert record.images == {"train": 59, "probe": 59, "test": 6}
    assert record.folder["path"] == str(tmp_path / "mine") and len(record.folder["left_out"]) == 3
    assert "linear_top1" in record.metrics and "knn5_cosine_top1" in record.metrics
    capsys.readouterr()
    monkeypatch.chdir("/")
    with pytest.warns(UserWarning, match="3 of 68"):
        assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(shown["linear_top1"].rstrip("%")) == pytest.approx(record.metrics["linear_top1"], abs=6e-4)
    encoder = wmse.load_encoder(tmp_path / "run")
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert encoder(images).shape == (4, 64) and not encoder.training
    normal = (images / 255 - torch.tensor(record.folder["mean"])[:, None, None]) / encoder.std
    torch.testing.assert_close(encoder(images), encoder.encoder(normal))
    assert records.read_records(tmp_path) == ([], []), "no table of the book counts it"


def test_a_flat_folder_has_the_measures_of_collapse_alone(tmp_path):
    mine = fill(tmp_path / "mine")
    for number, path in enumerate(sorted(mine.rglob("*.png"))):
        path.rename(mine / f"{number}.png")
    for path in list(mine.rglob("*.[jgP]*")):
        if path.parent != mine:
            path.unlink()
    out = train("folder/simclr", tmp_path / "run", replace(get_recipe("folder/simclr"), **TINY), mine, "cpu")
    record = records.read_record(out)
    assert record.folder["classes"] == [] and record.images == {"train": 54, "probe": 54, "test": 6}
    assert {"embedding_std", "alignment", "effective_rank_features"} <= set(record.metrics)
    assert not any("top1" in name for name in record.metrics)
    assert evaluate_run(out).keys() == record.metrics.keys()


def test_the_trial_that_the_readme_offers_runs_on_three_hundred_images(tmp_path, monkeypatch):
    readme = (Path(wmse.__file__).parents[1] / "README.md").read_text("utf-8")
    (words,) = re.findall(r"^python -m wmse (train folder/w-mse-2 .* --epochs) 20 (.*)$", readme, re.M)
    rng = np.random.RandomState(0)
    (tmp_path / "DIR").mkdir()
    for number in range(300):
        photo(rng, number % 3).save(tmp_path / "DIR" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    assert main([*words[0].split(), "1", *words[1].split()]) == 0
    record = records.read_record("runs/folder/w-mse-2/seed-0")
    assert record.status == "finished" and record.steps == 1 and record.metrics["cca_dimensions"] is None


def test_images_beside_class_folders_are_learnt_from_without_a_class(tmp_path):
    mine = fill(tmp_path / "mine")
    for number in range(10):
        photo(np.random.RandomState(number), 1).save(mine / f"{number}.bmp")
    sets, _ = load_own(mine, 32)
    assert len(sets["train"]) == 68 and len(sets["probe"]) == 59 and int(sets["test"].labels.min()) == 0


@pytest.mark.parametrize("size", [64, 96, 224])
def test_the_stem_follows_the_size(size, tmp_path):
    recipe = at_size(get_recipe("folder/w-mse-2"), size)
    assert (recipe.views.size, recipe.stem) == (size, "224px" if size == 224 else "64px")
    if size == 224:
        recipe = replace(recipe, **TINY | {"epochs": 1})
        out = train("folder/w-mse-2", tmp_path / "run", recipe, fill(tmp_path / "mine"), "cpu", limit=16)
        assert wmse.load_encoder(out)(torch.rand(1, 3, 224, 224)).shape == (1, 64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--batch-size", "256"],
            "59 training images make no batch of 256.*--slice-size 59 --embedding-dim 29",
        ),
        (
            ["--slice-size", "20", "--batch-size", "60", "--embedding-dim", "4"],
            "--batch-size 40, of whole slices",
        ),
        (["--data", "absent"], "absent.*is absent, or no folder: name one with files in .jpeg"),
        (["--data", "parts"], "test, train: parts of a set, not classes. Name the part"),
        (["--data", "few"], "few holds 19 images that can be read, and at least 20 are needed"),
        (["--size", "50"], "size is 50; give one of 32, 64, 96, 224 pixels"),
        (["--size", "64", "--stem", "32px"], "give either it or them"),
        (["--validate"], "folder has no validation split"),
    ],
    ids=lambda value: " ".join(value)[:24],
)
def test_what_cannot_train_is_answered_in_words(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(Path("mine"))
    fill(Path("parts/train"))
    fill(Path("parts/test"))
    Path("few").mkdir()
    for number in range(19):
        Image.new("L", (9, 9)).save(f"few/{number}.png")
    assert main(["train", "folder/w-mse-2", "--data", "mine", "--out", "run", *arguments]) == 2
    told = capsys.readouterr().err
    assert re.search(words, told), told
    assert not Path("run").exists()


def test_a_folder_must_be_named_and_a_size_is_for_own_images_only(capsys):
    assert main(["train", "folder/w-mse-2"]) == 2
    assert "--data DIR --size 32" in capsys.readouterr().err
    assert main(["train", "digits/w-mse-2", "--size", "64"]) == 2
    assert "size is for your own images" in capsys.readouterr().err
    with pytest.raises(ValueError, match="folder has no validation split"):
        load_validation("folder")
