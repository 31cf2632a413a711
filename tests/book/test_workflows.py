"""The workflows run what a reader can run, with few permissions, and end by themselves."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SCRIPTS = {path.name for path in (ROOT / ".ci").iterdir() if os.access(path, os.X_OK)}
TRIGGERS = {
    "pull-request": {"pull_request"},
    "main": {"push", "workflow_dispatch"},
    "weekly": {"schedule", "workflow_dispatch"},
}
each_workflow = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path):
    """A workflow; YAML takes its key `on` for a truth value."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content | {"on": content.pop(True)}


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def exists(command):
    """Whether a step's command is a target of the Makefile or a script of `.ci`, and nothing else."""
    target, script = re.fullmatch(r"make (\w+)", command), re.fullmatch(r"\.ci/(\w+)", command)
    return bool(target and target[1] in TARGETS or script and script[1] in SCRIPTS)


def test_there_is_one_for_each_occasion():
    assert {path.stem: set(read(path)["on"]) for path in FILES} == TRIGGERS
    main, weekly = (read(ROOT / ".github" / "workflows" / f"{name}.yml")["on"] for name in ("main", "weekly"))
    assert main["push"] == {"branches": ["main"]}
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", weekly["schedule"][0]["cron"]), "once a week"


@each_workflow
def test_every_command_exists(path):
    commands = [step["run"] for step in steps(read(path)) if "run" in step]
    assert commands and all(map(exists, commands)), commands
    assert all(set(step) & {"run", "uses"} for step in steps(read(path)))


def test_what_does_not_exist_is_found():
    assert exists("make book") and exists(".ci/run")
    for command in ("make nothing", ".ci/nothing", "make book; rm -r /", "pip install x"):
        assert not exists(command)


@each_workflow
def test_actions_are_pinned_permissions_are_few_and_no_job_hangs(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 90, name
        allowed = {"publish": {"pages", "id-token"}, "colab": {"contents"}} if path.stem == "main" else {}
        assert set(job.get("permissions", {})) <= allowed.get(name, set()), name
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
            if "/setup-python@" in step["uses"]:
                assert step["with"]["cache"] == "pip"
                assert (ROOT / step["with"]["cache-dependency-path"]).exists()
            if "/checkout@" in step["uses"]:
                assert step["with"]["persist-credentials"] is False
    assert "pull_request_target" not in workflow["on"]
    assert "secrets." not in path.read_text()


def test_what_is_published_is_what_was_built_and_tested():
    jobs = read(ROOT / ".github" / "workflows" / "main.yml")["jobs"]
    assert jobs["publish"]["needs"] == jobs["colab"]["needs"] == "build"
    (uploaded,) = [step["with"]["path"] for step in jobs["build"]["steps"] if "pages" in step.get("uses", "")]
    assert uploaded == "_build/html"
    assert {"make test", "make book"} <= set((ROOT / ".ci" / "run").read_text().splitlines())


def test_newest_lifts_bounds_but_those_that_must_stay_and_asks_first(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy2(ROOT / ".ci" / "newest", tmp_path / ".ci")
    (tmp_path / ".ci" / "run").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / ".ci" / "run").chmod(0o755)
    before = Path(shutil.copy2(ROOT / "requirements.txt", tmp_path)).read_text()

    def newest(ci):
        environment = {key: value for key, value in os.environ.items() if key != "CI"} | ci
        return subprocess.run([tmp_path / ".ci" / "newest"], env=environment, capture_output=True, text=True)

    assert newest({}).returncode == 1 and (tmp_path / "requirements.txt").read_text() == before
    assert newest({"CI": "true"}).stdout == "ran\n"
    after = (tmp_path / "requirements.txt").read_text()
    assert re.findall(r"^\S+,<\S+", after, re.MULTILINE) == re.findall(
        r"^jupyter-book\S+", before, re.MULTILINE
    )
    names = r"^[A-Za-z][\w.-]*"
    assert re.findall(names, after, re.MULTILINE) == re.findall(names, before, re.MULTILINE)
    assert "torch>=2.6\n" in after and "sphinx-mathjax-offline==" in after


def test_plain_notebooks_are_the_only_commit_of_the_branch_that_colab_opens(tmp_path):
    """Pushed twice, to a repository in a folder; the launch buttons name the same branch and folder."""
    configuration = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    assert configuration["sphinx"]["config"]["html_theme_options"]["repository_branch"] == "colab"
    assert "_build/plain/notebooks" in (ROOT / "Makefile").read_text(), "what `make plain` writes"

    def git(*words, cwd=tmp_path):
        author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        return subprocess.run(
            ["git", *author, *words], cwd=cwd, check=True, capture_output=True, text=True
        ).stdout

    source = tmp_path / "source"
    (source / ".ci").mkdir(parents=True)
    shutil.copy2(ROOT / ".ci" / "colab", source / ".ci")
    git("init", "-q", "--bare", "remote.git")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        git(*words, cwd=source)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("GIT", "TOKEN"))}
    command = [source / ".ci" / "colab"]
    options = {"capture_output": True, "text": True}
    remote = environment | {"REMOTE": str(tmp_path / "remote.git")}
    assert subprocess.run(command, env=remote, **options).returncode, "nothing to push"
    notebook = source / "_build" / "plain" / "notebooks" / "01_a.ipynb"
    notebook.parent.mkdir(parents=True)
    for text in ("{}", '{"cells": []}'):
        notebook.write_text(text)
        done = subprocess.run(command, env=remote, **options)
        assert not done.returncode, done.stderr
    inside = tmp_path / "remote.git"
    assert git("rev-list", "--count", "colab", cwd=inside) == "1\n"
    assert git("ls-tree", "-r", "--name-only", "colab", cwd=inside).split() == [
        "README.md",
        "notebooks/01_a.ipynb",
    ]
    assert git("show", "colab:notebooks/01_a.ipynb", cwd=inside) == '{"cells": []}'
    nowhere = subprocess.run(command, env=environment, **options)
    assert nowhere.returncode and "REMOTE" in nowhere.stderr
