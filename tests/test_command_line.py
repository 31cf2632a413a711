"""The command line: what a reader types works, and what cannot work is answered in a line."""

import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

from wmse import __main__ as command_line
from wmse import records
from wmse.__main__ import main
from wmse.data import load
from wmse.evaluation import evaluate
from wmse.recipes import RECIPES, Recipe, get_recipe
from wmse.views import ViewSettings

QUICK = ["--limit", "256", "--epochs", "1", "--batch-size", "128", "--precision", "float32"]


def test_train_then_evaluate_gives_the_same_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    changes = [
        "--seed",
        "4",
        "--whitening",
        "qr",
        "--lr-drops",
        "2",
        "1",
        "--views.hue",
        "0.3",
        "--no-normalize",
    ]
    assert main(["train", "digits/w-mse-2", *QUICK, *changes, "--out", "run"]) == 0
    shown = capsys.readouterr().out
    record = records.read_record("run")
    assert record.status == "finished" and record.name == "digits/w-mse-2"
    recipe = record.recipe
    assert (recipe.seed, recipe.whitening, recipe.lr_drops, recipe.views.hue) == (4, "qr", (2, 1), 0.3)
    assert not recipe.normalize and "--views.hue 0.3" in record.command
    names = ["linear_top1", "knn5_euclidean_top1", "knn5_cosine_top1", "effective_rank_features"]
    names += ["effective_rank_embeddings", "embedding_std", "cca_dimensions"]
    assert set(names) <= set(record.metrics) and all(name in shown for name in record.metrics)

    before = (tmp_path / "run" / "record.json").read_bytes()
    assert main(["evaluate", "run"]) == 0
    shown = capsys.readouterr().out
    again = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert list(again) == list(record.metrics)
    for name, value in record.metrics.items():
        if value is None:
            assert again[name].startswith("not computed: ")
        else:
            assert float(again[name].removesuffix("%")) == pytest.approx(value, abs=6e-4)
        assert again[name].endswith("%") == ("top1" in name)
    assert (tmp_path / "run" / "record.json").read_bytes() == before

    assert main(["train", "digits/w-mse-2", *QUICK, *changes, "--out", "run"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", "digits/w-mse-2", *QUICK, *changes, "--out", "run", "--resume"]) == 0


def test_what_is_not_computed_says_why(capsys):
    """As `evaluate` gives it for a few images, and for embeddings without spread in some direction."""
    encoder, collapsed = torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4)
    torch.nn.init.zeros_(collapsed.weight)
    recipe = get_recipe("digits/w-mse-2")
    images = load("digits", "test")
    for n, projector, why in (
        (
            40,
            torch.nn.Linear(3 * 32 * 32, 32),
            "40 test images, fewer than 2 per dimension of the embeddings",
        ),
        (40, collapsed, "the covariance of the embeddings is singular"),
    ):
        few = replace(images.first(n), classes=())
        metrics = evaluate(encoder, projector, few, few, recipe)
        command_line._show(metrics, {"test": n})
        lines = [line for line in capsys.readouterr().out.splitlines() if "not computed" in line]
        assert len(lines) == list(metrics.values()).count(None) >= 3
        assert all(line.endswith(f"not computed: {why}") for line in lines)


def test_without_out_each_run_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wmse.training.evaluate", lambda *_: {"linear_top1": 0.0})
    for _ in range(2):
        assert main(["train", "digits/mse", *QUICK]) == 0
    assert main(["train", "digits/mse", *QUICK, "--resume"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs/digits/mse").iterdir()) == ["seed-0", "seed-0-2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "digits/w-mse-9"], ["digits/w-mse-9", *RECIPES]),
        (["train", "digits/w-mse-2", "--slice-size", "100"], ["slice_size = 100", "n = 128"]),
        (["train", "digits/w-mse-2", "--limit", "9999999"], ["9999999", "2048"]),
        (["evaluate", "nowhere"], ["nowhere"]),
        (["learn"], ["learn", "train", "evaluate", "table", "queue"]),
        (["train", "--out", "digits/mse"], ["recipe comes first"]),
        (["train", "--seed", "1", "digits/mse"], ["recipe comes first"]),
        (["table", "table-7"], ["table-7", "table-1", "imagenet-100"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_what_cannot_work_is_answered_in_words(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words) and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_field_of_a_recipe(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "cifar10/w-mse-4", "--help"])
    assert stop.value.code in (0, None)
    text = capsys.readouterr().out
    flags = [field.name for field in fields(Recipe) if field.name != "views"]
    flags += [f"views.{field.name}" for field in fields(ViewSettings)] + [
        "out",
        "data",
        "device",
        "resume",
        "limit",
    ]
    assert [flag for flag in flags if f"--{flag.replace('_', '-')}" not in text] == []


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train"], ["train", "--help"]], ids=str)
def test_the_usage_lists_the_recipes(arguments, capsys):
    assert main(arguments) == (0 if "--help" in arguments else 2)
    told = "".join(capsys.readouterr())
    assert set(told.split()) >= set(RECIPES) and max(map(len, told.splitlines())) <= 100
    groups = [{name.split("/")[0] for name in RECIPES if name in line.split()} for line in told.splitlines()]
    assert max(map(len, groups)) == 1, "a line holds recipes of one data set and budget"


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("evaluate", ["data", "device"]),
        ("table", ["results", "markdown"]),
        ("queue", ["results", "write"]),
    ],
)
def test_help_explains_the_flags_of_every_command(command, flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code in (0, None)
    text = capsys.readouterr().out
    assert all(f"--{flag}" in text for flag in flags)


def loaded(code):
    """The modules that a fresh interpreter has loaded after running the code."""
    code = f"{code}\nimport sys; print('\\n', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_is_light_to_import():
    modules = "whitening losses data views networks recipes training records figures".split()
    found = loaded(f"import wmse, {', '.join(f'wmse.{name}' for name in modules)}")
    assert not found & {"torchvision", "sklearn", "matplotlib", "umap", "seaborn", "tyro", "pandas", "scipy"}
    assert not loaded("import wmse") & {"torch", "numpy", "wmse.whitening"}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["train", "digits/mse", "--help"],
        ["evaluate", "--help"],
        ["table", "table-1"],
        ["queue"],
    ],
    ids=" ".join,
)
def test_help_tables_and_queue_load_no_torch(arguments):
    """Nor does the usage load the packages of the tables, or tyro."""
    code = f"from wmse.__main__ import main\ntry: main({arguments})\nexcept SystemExit: pass"
    heavy = {"torch", "torchvision", "sklearn", "scipy", "matplotlib", "umap"}
    heavy |= {"pandas"} if arguments[:1] != ["table"] else set()
    heavy |= set() if arguments[1:] else {"tyro"} if arguments != ["queue"] else set()
    assert not loaded(code) & heavy


def test_the_package_exports_its_two_functions_and_their_error_on_first_use():
    import wmse
    from wmse import losses, whitening

    assert wmse.whiten is whitening.whiten and wmse.w_mse_loss is losses.w_mse_loss
    assert wmse.SingularCovarianceError is whitening.SingularCovarianceError
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = wmse.no_such_name
