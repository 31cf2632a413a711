"""On Colab a chapter installs the version of the package that `_config.yml` names, and nothing that it has.

Colab is played by a fresh environment that sees the packages of this one but for `wmse`, with a module
`google.colab`; Git takes the repository's address to a copy of the working tree. No network is used.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import repository

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHEAP = "03_whitening.ipynb"  # trains nothing
CELLS = """
import json, sys
for name, sources in json.load(sys.stdin).items():
    namespace = {"__name__": "__main__"}
    for source in sources:
        try:
            exec(source, namespace)
        except Exception as error:
            sys.exit(f"{name}: {type(error).__name__}: {error}")
import wmse
print(wmse.__file__)
"""

ADDRESS = "https://github.com/{}/{}".format(*repository.current(ROOT))
VERSION = repository.version(ROOT)


def cells(path, *tags):
    """The sources of a notebook's code cells, those with one of the tags if any are given."""
    found = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [cell.source for cell in found if not tags or set(tags) & set(cell.metadata.get("tags", []))]


def run(command, colab, **options):
    done = subprocess.run(
        list(map(str, command)),
        env=colab.environment,
        cwd=colab.cwd,
        text=True,
        capture_output=True,
        **options,
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def wheel(folder, name, version):
    """An empty package of that name, newer than any that is installed."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """An environment without `wmse` and without tyro, a working directory, and the variables for both."""
    place = tmp_path_factory.mktemp("colab")
    folders = {
        name: place / name for name in ("source", "packages", "wheels", "content", "jupyter", "ipython")
    }
    for folder in folders.values():
        folder.mkdir()

    # The repository: the working tree, as the version that the notebooks ask for.
    shutil.copytree(ROOT / "wmse", folders["source"] / "wmse", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folders["source"])
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q", "-b", VERSION], ["add", "."], [*author, "commit", "-q", "-m", "test"]):
        subprocess.run(["git", *words], cwd=folders["source"], check=True)

    # What Colab has: links to the packages installed here.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    installed = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    for package in (package for folder in installed for package in folder.iterdir()):
        link = folders["packages"] / package.name
        hidden = re.match(r"wmse\b|__editable__|tyro\b|__pycache__|.*\.pth$", package.name)
        if not hidden and not link.exists():
            link.symlink_to(package)
    (own,) = (place / "venv").glob("lib/python*/site-packages")
    (own / "colab.pth").write_text(f"{folders['packages']}\n")

    python = place / "venv" / "bin" / "python"
    kernel = folders["jupyter"] / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    startup = folders["ipython"] / "profile_default" / "startup" / "colab.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n")

    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PIP_", "GIT_", "PYTHON", "VIRTUAL_ENV", "WMSE_", "MPLBACKEND"))
    }
    environment |= {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{folders['source'].as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",  # so pip fails if it wants anything that is not there
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this variable as "build isolation: no"
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "JUPYTER_PATH": str(folders["jupyter"]),
        "JUPYTER_RUNTIME_DIR": str(folders["jupyter"] / "runtime"),
        "IPYTHONDIR": str(folders["ipython"]),
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    # Colab lacks tyro; the index has it, and newer versions of what Colab has.
    for name in ("tyro", "torch", "torchvision", "numpy", "matplotlib"):
        wheel(folders["wheels"], name, "999.0")
    return SimpleNamespace(
        python=python,
        own=own,
        packages=folders["packages"],
        wheels=folders["wheels"],
        cwd=folders["content"],
        environment=environment,
        tyro=[path for folder in installed for path in folder.glob("tyro*")],
    )


@pytest.fixture(scope="module")
def dry_run(colab):
    """The names of what pip would install for `wmse`; afterwards the environment has it all but `wmse`."""
    report = colab.cwd.parent / "report.json"
    command = [colab.python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", report]
    run([*command, "--find-links", colab.wheels, f"wmse[book] @ git+{ADDRESS}@{VERSION}"], colab)
    for path in colab.tyro:
        (colab.packages / path.name).symlink_to(path)
    return {item["metadata"]["name"] for item in json.loads(report.read_text())["install"]}


@pytest.fixture(scope="module")
def installed(colab, dry_run):
    """The environment after a cheap chapter was executed in it: now `wmse` is installed, not editable."""
    absent = subprocess.run(
        [colab.python, "-c", "import wmse"], env=colab.environment, cwd=colab.cwd, capture_output=True
    )
    assert b"No module named 'wmse'" in absent.stderr
    command = [sys.executable, "-m", "papermill", ROOT / "notebooks" / CHEAP, colab.cwd / CHEAP]
    run([*command, "-k", "python3", "--no-progress-bar"], colab)
    return colab


def test_every_chapter_has_the_same_setup_and_it_installs_the_version_of_the_configuration():
    setups = {path.name: cells(path, "setup") for path in NOTEBOOKS}
    ((setup,), *_) = setups.values()
    install = f'%pip install --quiet "wmse[book] @ git+{ADDRESS}@{VERSION}"'
    assert install in setup, "`make repository` writes it"
    others = [name for name, sources in setups.items() if sources != [setup]]
    assert not others, f"another setup cell than that of {NOTEBOOKS[0].name}; `make repository` sets versions"


def test_pip_would_install_the_package_and_what_colab_lacks_only(dry_run):
    assert dry_run == {"wmse", "tyro"}, "torch and others stay as Colab has them, though the index has newer"


def test_a_chapter_installs_the_package_alone_and_runs(installed):
    (information,) = installed.own.glob("wmse-*.dist-info")
    assert {path.name for path in installed.own.iterdir()} == {"colab.pth", "wmse", information.name}
    origin = json.loads((information / "direct_url.json").read_text())
    assert origin["url"] == ADDRESS and origin["vcs_info"]["requested_revision"] == VERSION
    executed = nbformat.read(installed.cwd / CHEAP, as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


def test_every_chapter_finds_its_imports_and_tables_say_where_the_records_are(installed):
    """Chapter 9 is run whole, in a folder without a checkout around it; of the others the imports."""
    sources = {path.name: cells(path, "imports") for path in NOTEBOOKS}
    tables = ROOT / "notebooks" / "09_tables.ipynb"
    setup = cells(tables, "setup")
    sources[tables.name] = [source for source in cells(tables) if source not in setup]
    command = [installed.python, "-c", CELLS]
    printed = run(command, installed, input=json.dumps(sources))
    assert "set $WMSE_RESULTS" in printed and "0 finished runs" in printed
    assert printed.splitlines()[-1].startswith(str(installed.own)), "not the checkout's package"


def test_a_version_is_pinned_by_the_command_that_sets_the_address(tmp_path):
    owner, name = repository.current(ROOT)
    (tmp_path / "notebooks").mkdir()
    shutil.copy2(ROOT / "_config.yml", tmp_path)
    for path in NOTEBOOKS[:2]:
        shutil.copy2(path, tmp_path / "notebooks")
    link = "https://colab.research.google.com/github/{}/blob/colab/notebooks/a.ipynb"
    page = tmp_path / "README.md"
    page.write_text(link.format(f"{owner}/{name}") + f" git+{ADDRESS} and git clone {ADDRESS}\n")
    repository.rename("https://github.com/a/b@v1.0", tmp_path)
    assert repository.current(tmp_path) == ("a", "b") and repository.version(tmp_path) == "v1.0"
    assert page.read_text() == (
        link.format("a/b") + " git+https://github.com/a/b@v1.0 and git clone https://github.com/a/b\n"
    )
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        assert '"wmse[book] @ git+https://github.com/a/b@v1.0"' in cells(path, "setup")[0]
        assert papermill.inspect_notebook(str(path))
    repository.rename("https://github.com/a/c", tmp_path)
    assert repository.version(tmp_path) == "v1.0", "without an @ the version stays"
    with pytest.raises(ValueError, match="VERSION"):
        repository.rename("https://github.com/a/b@", tmp_path)
