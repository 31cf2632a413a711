"""`make` installs the PyTorch that is asked for, from where it is asked for."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPI = ".venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt"


@pytest.fixture
def bare(tmp_path):
    """A checkout without an environment, as far as the Makefile looks at it."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path)
    return tmp_path


def planned(tree, *arguments):
    """The pip commands that make would run, in their order."""
    done = subprocess.run(["make", "-n", *arguments], cwd=tree, text=True, capture_output=True, check=True)
    return [line for line in done.stdout.splitlines() if " pip install " in line]


def asked(tree, command):
    """The words of a command as the shell hands them to pip."""
    python, _, rest = command.partition(" ")
    done = subprocess.run(
        f"printf '%s\\n' {rest}", shell=True, cwd=tree, text=True, capture_output=True, check=True
    )
    return [python, *done.stdout.splitlines()]


@pytest.mark.parametrize("target", ["book", "test"])
def test_by_default_all_comes_from_pypi(bare, target):
    assert planned(bare, target)[0] == PYPI and len(planned(bare, target)) == 2


@pytest.mark.parametrize("target", ["book", "test"])
def test_torch_cpu_takes_two_packages_from_pytorchs_index_first(bare, target):
    first, second, _ = planned(bare, target, "TORCH=cpu")
    words = asked(bare, first)
    assert words[words.index("--index-url") + 1] == "https://download.pytorch.org/whl/cpu"
    named = [line.split()[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if line]
    assert words[-2:] == [line for line in named if line.startswith("torch")], "these two, in our bounds"
    assert second == PYPI, "the rest does not come from there"


def test_an_environment_that_has_another_torch_says_so(bare):
    def said(*arguments):
        command = ["make", "-n", "-W", "Makefile", "lint", *arguments]
        return subprocess.run(command, cwd=bare, text=True, capture_output=True, check=True).stderr

    marker = bare / ".venv" / ".installed"
    marker.parent.mkdir()
    for made_with, warned in (("pypi", True), ("cpu", False), ("", False)):
        marker.write_text(made_with + "\n")
        assert ("TORCH=cpu changes nothing. To switch, remove .venv" in said("TORCH=cpu")) == warned
        assert not said()


@pytest.mark.parametrize(("arguments", "made_with"), [([], "pypi"), (["TORCH=cpu"], "cpu")])
def test_the_environment_remembers_the_torch_that_it_was_made_with(bare, arguments, made_with):
    (bare / ".venv").mkdir()
    done = subprocess.run(
        ["make", "-n", "lint", *arguments], cwd=bare, text=True, capture_output=True, check=True
    )
    (command,) = [line for line in done.stdout.splitlines() if "> .venv/.installed" in line]
    for again in (False, True):
        subprocess.run(command if not again else command.replace(made_with, "other"), shell=True, cwd=bare)
        assert (bare / ".venv" / ".installed").read_text() == f"{made_with}\n", "an update keeps it"


def test_another_torch_is_refused_before_anything_is_made(bare):
    done = subprocess.run(
        ["make", "book", f"PYTHON={sys.executable}", "TORCH=gpu"], cwd=bare, text=True, capture_output=True
    )
    assert done.returncode and "TORCH is 'gpu': give cpu" in done.stdout
    assert not (bare / ".venv").exists()


def wheel(folder, name, version, requires=""):
    """A wheel that holds nothing."""
    info = f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing: the requests are pip's."""


def test_the_command_installs_from_an_index(bare):
    """The index is a folder here; the wheels are empty and called as PyTorch calls its own."""
    index = bare / "index"
    wheel(index / "torch", "torch", "2.9.0+cpu")
    wheel(index / "torchvision", "torchvision", "0.24.0+cpu", requires="torch==2.9.0")
    handler = functools.partial(Silent, directory=index)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        command = asked(bare, planned(bare, "book", "TORCH=cpu", f"TORCH_INDEX={address}")[0])
        command = [sys.executable, *command[1:], "--target", "installed"]
        own = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        done = subprocess.run(
            command, cwd=bare, text=True, capture_output=True, env=own | {"PIP_CONFIG_FILE": os.devnull}
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    found = {path.name.removesuffix(".dist-info") for path in (bare / "installed").glob("*.dist-info")}
    assert found == {"torch-2.9.0+cpu", "torchvision-0.24.0+cpu"}
