"""What people type: paths, seeds and the parameters of a chapter are mended, or refused in words."""

import os
import pwd
from pathlib import Path

import numpy as np
import pytest

from wmse import machine, records
from wmse.__main__ import main
from wmse.machine import as_path, check_parameters, check_seed, data_folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A working directory, with a home and a variable beside it; nobody's data."""
    for name in ("home", "here", "scratch"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    for name in ("WMSE_DATA", "WMSE_RESULTS", "NOPE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("~/run", "home/run"),
        ("~", "home"),
        ("~/my runs/", "home/my runs"),
        (" ~/run\n", "home/run"),
        ("'~/run'", "home/run"),
        ('"$SCRATCH/run"', "scratch/run"),
        ("$SCRATCH", "scratch"),
        ("${SCRATCH}/a b", "scratch/a b"),
        ("$HOME/../scratch/x", "home/../scratch/x"),
        ("$SCRATCH/~/x", "scratch/~/x"),
    ],
)
def test_paths_are_expanded(typed, meant, tmp_path):
    assert as_path(typed) == as_path(Path(typed)) == tmp_path / meant


def test_a_variable_may_begin_with_a_home_and_a_user_be_named(home, monkeypatch):
    monkeypatch.setenv("SCRATCH", "~/deep")
    assert as_path("$SCRATCH/run") == home / "deep" / "run"
    me = pwd.getpwuid(os.getuid())
    assert as_path(f"~{me.pw_name}/run") == Path(me.pw_dir) / "run"


@pytest.mark.parametrize("typed", ["runs", "a b/c", "./run-1", "/x/~y/z", "run~1", "../up", "100%"])
def test_plain_paths_stay(typed):
    assert as_path(typed) == Path(typed)


def test_a_name_with_a_dollar_that_is_there_is_taken_as_it_is():
    Path("a$NOPE").mkdir()
    assert as_path("a$NOPE") == Path("a$NOPE")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "the path is empty"),
        ("  ", "the path is empty"),
        ("''", "the path is empty"),
        ("$NOPE/run", "names the variable NOPE, which is not set"),
        ("/x/${NOPE}", "names the variable NOPE, which is not set"),
        ("~nobody-of-that-name/run", "begins with a home that is not known"),
        ("https://host/folder", "is an address"),
        (Path("s3://bucket/folder"), "is an address"),
    ],
)
def test_paths_that_mean_nothing_are_refused(typed, words):
    with pytest.raises(ValueError, match=words):
        as_path(typed)


# --- the folder of the data sets ------------------------------------------------------------------


def test_data_are_where_the_flag_says_or_the_variable_or_in_data(home, tmp_path, monkeypatch):
    assert data_folder() == data_folder("") == Path("data")
    monkeypatch.setenv("WMSE_DATA", '"$SCRATCH/sets"')
    assert data_folder() == tmp_path / "scratch" / "sets"
    assert data_folder("~/sets") == home / "sets"


@pytest.mark.parametrize("name", machine.SET_FOLDERS)
@pytest.mark.parametrize("spelling", ["{}", "{}/", "link", "."])
def test_a_sets_own_folder_stands_for_the_one_that_holds_it(name, spelling, tmp_path, monkeypatch):
    own = tmp_path / "sets" / name
    own.mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(own)
    if spelling == ".":
        monkeypatch.chdir(own)
    assert data_folder(spelling.format(own)) == tmp_path / "sets"
    assert data_folder(tmp_path / "sets") == tmp_path / "sets"


def test_a_folder_of_sets_may_have_the_name_of_one(tmp_path):
    (tmp_path / "imagenet" / "stl10_binary").mkdir(parents=True)
    assert data_folder(tmp_path / "imagenet") == tmp_path / "imagenet"


def test_a_file_is_no_folder_of_data_sets():
    Path("cifar-10-python.tar.gz").touch()
    with pytest.raises(NotADirectoryError, match="cifar-10-python.tar.gz is no folder"):
        data_folder("cifar-10-python.tar.gz")


# --- flags and variables --------------------------------------------------------------------------


def test_flags_and_variables_are_expanded_at_the_command_line(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("wmse.training.evaluate", lambda *_: {"linear_top1": 0.0})
    quick = ["--limit", "256", "--epochs", "1", "--precision", "float32"]
    assert main(["train", "digits/mse", *quick, "--out=~/runs/one"]) == 0
    assert records.read_record(home / "runs" / "one").status == "finished"
    assert main(["evaluate", "$HOME/runs/one"]) == 0
    capsys.readouterr()
    assert main(["table", "table-1", "--results", "~/runs"]) == 0
    assert f"Records below {home / 'runs'}: 1" in capsys.readouterr().out
    assert main(["queue", "--results", "'~/runs'", "--write"]) == 0
    assert (home / "runs" / "QUEUE.md").is_file()
    monkeypatch.setenv("WMSE_RESULTS", "~/runs")
    assert records.results_folder().resolve() == home / "runs"
    assert list(Path().iterdir()) == [], "no folder is named ~"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out=$NOPE/run"], "names the variable NOPE, which is not set"),
        (["--data=$NOPE"], "names the variable NOPE, which is not set"),
        (
            ["--seed", "9000000000000000000"],
            "seed is 9000000000000000000; give a whole number from 0 to 4294967295",
        ),
        (["--seed=-1"], "seed is -1; give a whole number from 0 to 4294967295"),
    ],
)
def test_what_means_nothing_is_answered_in_a_line(flags, words, capsys):
    assert main(["train", "digits/mse", "--limit", "256", *flags]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and words in told and told.count("\n") == 1
    assert list(Path().iterdir()) == []


# --- seeds and the parameters of a chapter --------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, np.int64(3)])
def test_seeds_that_all_generators_take_pass(seed):
    assert check_seed(seed) == seed and type(check_seed(seed)) is int
    np.random.RandomState(check_seed(seed))


@pytest.mark.parametrize(
    "seed", [-1, 2**32, 9 * 10**18, 1.5, float("nan"), float("inf"), "3", None, True, [1]]
)
def test_other_seeds_are_refused_with_the_range(seed):
    with pytest.raises(ValueError) as told:
        check_seed(seed)
    assert f"seed is {seed!r}; give a whole number from 0 to 4294967295 (2**32 - 1)" in str(told.value)


def test_parameters_that_are_right_come_back_with_paths_expanded(home, tmp_path):
    assert check_parameters("smoke", 0, "", "runs") == ("smoke", 0, "", "runs")
    expected = ("paper", 5, str(tmp_path / "scratch"), str(home / "my runs"))
    assert check_parameters("paper", 5, "$SCRATCH", " ~/my runs/ ") == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"profile": "Smoke"}, "profile is 'Smoke'; there are: smoke, colab, paper"),
        ({"profile": ""}, "profile is ''; there are: smoke, colab, paper"),
        ({"profile": None}, "profile is None; there are"),
        ({"seed": 1e3}, r"seed is 1000.0; give a whole number from 0 to 4294967295 .*, such as 1000"),
        ({"seed": 2**32}, "seed is 4294967296; give"),
        ({"seed": "one"}, "seed is 'one'; give"),
        ({"data": 7}, "data is 7; give a path in quotes .*-r data 7"),
        ({"data": "$NOPE/sets"}, "the variable NOPE"),
        ({"out": 2024}, "out is 2024; give a path in quotes .*-r out 2024"),
        ({"out": ""}, "out is '': the path is empty"),
        ({"out": "$NOPE"}, "out is .*the variable NOPE"),
        ({"out": None}, "out is None"),
    ],
    ids=str,
)
def test_parameters_that_are_wrong_are_refused_with_what_is_allowed(change, words):
    with pytest.raises(ValueError, match=words):
        check_parameters(**{"profile": "smoke", "seed": 0, "data": "", "out": "runs"} | change)


@pytest.mark.parametrize("name", ["data", "out"])
@pytest.mark.parametrize("typed", ["file", "file/below", "gone"])
def test_a_file_in_place_of_a_folder_is_told(name, typed):
    Path("file").touch()
    Path("gone").symlink_to("nowhere")
    with pytest.raises(NotADirectoryError, match=r"but .*(file|gone) is no folder"):
        check_parameters(**{"profile": "smoke", "seed": 0, "data": "", "out": "runs"} | {name: typed})


def test_the_variable_for_the_data_is_checked_too(monkeypatch):
    monkeypatch.setenv("WMSE_DATA", "$NOPE/sets")
    with pytest.raises(ValueError, match="the variable NOPE"):
        check_parameters("smoke", 0, "", "runs")
