"""The programs of the page "W-MSE in your project" run as they stand, but for their sizes."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from docutils.core import publish_doctree
from PIL import Image
from sphinx.ext.napoleon import GoogleDocstring
from torch import nn

import wmse
from wmse import records
from wmse.networks import STEMS, Normalized, build_encoder
from wmse.recipes import get_recipe
from wmse.run import Run, save_networks

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "book" / "project.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
)
SIZES = "size, k, slice_size, batch_size, epochs, workers = "


def program(word):
    """The one program of the page in which the word stands."""
    (found,) = (block for block in BLOCKS if word in block)
    return found


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.RandomState(0)
    for number in range(37):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (40, 50, 3)).astype(np.uint8)).save(folder / f"{number}.png")


def saved_run(folder, width, stem, dataset="cifar10"):
    """A run's folder with the networks of its start, BatchNorm's statistics moved; the run."""
    folder.mkdir(parents=True)
    name = f"{dataset}/w-mse-2"
    run = Run(replace(get_recipe(name), width=width, stem=stem), 1000, "cpu")
    run.encoder.train()(torch.randn(8, 3, 64, 64))
    run.encoder.eval()
    save_networks(run, folder)
    record = records.start_record(name, run.recipe, torch.device("cpu"))
    if dataset == "folder":
        record.folder = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    records.write_record(folder, record)
    return run


def test_the_loop_trains_on_a_folder_whose_last_batch_is_smaller(photos, tmp_path):
    source = program("ImageFolder(")
    (line,) = [line for line in source.splitlines() if line.startswith(SIZES)]
    Path("loop.py").write_text(source.replace(line, f"{SIZES}32, 4, 8, 16, 2, 0"))
    done = subprocess.run(
        [sys.executable, "loop.py"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    rows = [list(map(float, line.split())) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [0, 1]
    assert all(0 < loss < 4 and std > 0 and 1 <= rank <= 4 for _, loss, std, rank in rows)
    assert len(torch.load("encoder.pt")) > 100


def test_the_loop_is_of_forty_lines_and_its_sizes_are_what_the_page_advises():
    source = program("ImageFolder(")
    (line,) = [line for line in source.splitlines() if line.startswith(SIZES)]
    _, k, slice_size, batch_size, *_ = ast.literal_eval(line.removeprefix(SIZES))
    assert slice_size == 2 * k and batch_size % slice_size == 0
    assert len(source.splitlines()) <= 50


def test_every_program_of_the_page_parses():
    assert len(BLOCKS) == 5 and all(ast.parse(block) for block in BLOCKS)


def test_the_lightning_module_takes_a_step(monkeypatch):
    """With a stand-in for Lightning, which is not installed: its module is an nn.Module that logs."""
    logged = {}
    lightning = ModuleType("lightning")
    lightning.LightningModule = type(
        "LightningModule", (nn.Module,), {"log": lambda _, *pair: logged.update([pair])}
    )
    monkeypatch.setitem(sys.modules, "lightning", lightning)
    namespace = {}
    exec(program("lightning"), namespace)
    module = namespace["WMSE"](nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), slice_size=4)
    loss = module.training_step(((torch.randn(8, 3, 2, 2), torch.randn(8, 3, 2, 2)), None), 0)
    loss.backward()
    optimizer = module.configure_optimizers()
    before = module.networks[1].weight.clone()
    optimizer.step()
    assert logged["loss"] is loss and not torch.equal(before, module.networks[1].weight)


def test_torchvisions_resnet18_takes_the_weights(tmp_path, monkeypatch):
    run = saved_run(tmp_path / "run", 64, "32px")
    monkeypatch.chdir(tmp_path / "run")
    namespace = {}
    exec(program("resnet18()\nmodel"), namespace)
    model = namespace["model"]
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), run.encoder(images))
    assert not model.training


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("width", [8, 64])
@torch.no_grad()
def test_load_encoder_knows_width_stem_and_normalisation(width, stem, tmp_path):
    run = saved_run(tmp_path / "run", width, stem, "folder")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]])[:, :, None, None]
    expected = run.encoder((images / 255 - mean) / std)
    for given in (tmp_path / "run", str(tmp_path / "run" / "encoder.safetensors")):
        encoder = wmse.load_encoder(given)
        assert encoder.out_features == 8 * width and not encoder.training
        for form in (images, images / 255):
            torch.testing.assert_close(encoder(form), expected)


def test_load_encoder_has_the_statistics_of_published_sets_and_of_digits(tmp_path):
    saved_run(tmp_path / "cifar", 8, "32px")
    assert wmse.load_encoder(tmp_path / "cifar").mean.flatten().tolist() == pytest.approx(
        [0.4914, 0.4822, 0.4465]
    )
    run = Run(get_recipe("digits/w-mse-2"), 1000, "cpu")
    (tmp_path / "digits").mkdir()
    save_networks(run, tmp_path / "digits")
    records.write_record(
        tmp_path / "digits", records.start_record("digits/w-mse-2", run.recipe, torch.device("cpu"))
    )
    encoder = wmse.load_encoder(tmp_path / "digits")
    train = wmse.data.load("digits", "train")
    assert encoder.std.flatten().tolist() == pytest.approx(train.std)
    torch.testing.assert_close(encoder(train.images[:4]), run.encoder.eval()(train.normalized(slice(4))))


@torch.no_grad()
def test_load_encoder_refuses_images_in_another_range_or_form(tmp_path):
    saved_run(tmp_path / "run", 8, "32px")
    encoder = wmse.load_encoder(tmp_path / "run")
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - encoder.mean) / encoder.std
    missing = images.clone()
    missing[0, 0, 0, 0] = torch.nan
    for wrong, words in (
        (images * 255, r"got values from 0\.\S+ to 25\d.* Divide bytes by 255"),
        (normalised, r"got values from -\S+ to \S+\. .*leave the normalisation"),
        (missing, "from nan to nan"),
        ((images * 255).long(), "got torch.int64"),
        (images[0], r"must be \(n, 3, h, w\); got \(3, 32, 32\)"),
        (images[:, :1], r"got \(2, 1, 32, 32\)"),
    ):
        with pytest.raises(ValueError, match=words):
            encoder(wrong)
    assert encoder(images * 1.1 - 0.05).isfinite().all(), "bicubic resizing overshoots a little"
    assert encoder(images[:0]).shape == (0, 64)
    encoder.check = False
    assert encoder(images * 255).isfinite().all()


@torch.no_grad()
def test_an_encoder_can_be_exported_as_one_graph(tmp_path):
    saved_run(tmp_path / "run", 8, "32px")
    encoder, images = wmse.load_encoder(tmp_path / "run"), torch.rand(2, 3, 32, 32)
    exported = torch.export.export(encoder, (images,)).module()
    torch.testing.assert_close(exported(images), encoder(images))


@torch.no_grad()
def test_an_encoder_that_pools_takes_another_size_and_one_that_does_not_says_so(tmp_path):
    saved_run(tmp_path / "run", 8, "32px")
    pooled = wmse.load_encoder(tmp_path / "run")
    image = torch.rand(1, 3, 40, 56)
    assert pooled(image).shape == (1, 64)
    small = Normalized(build_encoder("small"), (0.5,) * 3, (0.5,) * 3).eval()
    assert small(image[..., :32, :32]).shape == (1, 256)
    with pytest.raises(ValueError, match=r"must be \(n, 3, 32, 32\); got \(1, 3, 40, 56\)"):
        small(image)


def test_load_encoder_says_what_is_missing(tmp_path):
    saved_run(tmp_path / "run", 8, "32px")
    (tmp_path / "run" / "record.json").unlink()
    with pytest.raises(FileNotFoundError, match="record.json does not exist"):
        wmse.load_encoder(tmp_path / "run" / "encoder.safetensors")


def test_the_module_is_the_function():
    views = torch.randn(2, 16, 3)
    options = {"slice_size": 8, "whitening": "qr", "normalize": False}
    one, two, three = (
        call(torch.Generator().manual_seed(1))
        for call in (
            lambda g: wmse.w_mse_loss(views, generator=g, **options),
            lambda g: wmse.WMSELoss(generator=g, **options)(views),
            lambda g: wmse.WMSELoss(generator=g, **options)(*views),
        )
    )
    assert one == two == three
    with pytest.raises(TypeError, match="sliec_size"):
        wmse.WMSELoss(8, sliec_size=4)
    with pytest.raises(ValueError, match="not a multiple of slice_size = 8"):
        wmse.WMSELoss(8)(views[:, :15])
    assert "slice_size=8" in repr(wmse.WMSELoss(8))


EXTRAS = {"tyro", "pandas", "sklearn", "scipy", "matplotlib", "seaborn", "umap", "jupyter", "papermill"}


def test_the_lean_install_has_all_but_the_command_line(photos):
    """What the extras bring is hidden; then losses, training from Python and `load_encoder` still work."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))"
        + """
from dataclasses import replace
import torch, wmse, wmse.minimal, wmse.views, wmse.evaluation, wmse.metrics, wmse.checkpoints
from wmse.recipes import get_recipe
from wmse.training import evaluate_run, train
from wmse.__main__ import main
wmse.whiten(torch.randn(8, 2)); wmse.WMSELoss(4)(torch.randn(8, 2), torch.randn(8, 2))
sizes = dict(batch_size=16, slice_size=16, embedding_dim=4, projector_width=16, width=8, epochs=1)
recipe = replace(get_recipe("folder/w-mse-2"), precision="float32", **sizes)
out = train("folder/w-mse-2", "run", recipe, "photos", "cpu")
assert "linear_top1" in evaluate_run(out)
assert wmse.load_encoder(out)(torch.rand(1, 3, 32, 32)).shape == (1, 64)
assert main(["train", "digits/w-mse-2"]) == 2
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert not done.returncode, done.stderr
    assert "pip install 'wmse[train]'" in done.stderr


def test_the_reference_lists_what_the_package_exports_and_what_has_a_docstring():
    """Sphinx fails for a name that does not exist; this fails for one that is missing or says nothing."""
    listed = set()
    page = (ROOT / "book" / "api.md").read_text("utf-8")
    for kind, target, members in re.findall(r"auto(\w+):: (\S+)\n(?: +:members:(.*)\n)?", page):
        found = import_module(target) if kind == "module" else None
        if found is None:
            module, name = target.rsplit(".", 1)
            found = getattr(import_module(module), name)
        listed.add(found)
        named = [name.strip() for name in members.split(",") if name.strip()]
        own = [name for name, one in vars(found).items() if getattr(one, "__module__", "") == target]
        for name in named or [name for name in own if kind == "module" and name[0] != "_"]:
            listed.add(getattr(found, name))
    assert {getattr(wmse, name) for name in wmse.__all__} <= listed
    for one in listed:  # warnings of the site's build are errors; here they come without a build
        text = str(GoogleDocstring(inspect.getdoc(one)))
        publish_doctree(text, settings_overrides={"halt_level": 2, "report_level": 5})
        assert text.strip(), one
    for room in ("whitening", "losses", "views", "evaluation", "metrics", "training", "records"):
        assert f":: wmse.{room}\n" in page


def test_what_the_package_imports_is_declared_in_the_right_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(entries):
        return {entry.split(">")[0].split("[")[0] for entry in entries}

    core = {"torch", "torchvision", "numpy", "safetensors", "tqdm", "filelock", "pydantic"}
    assert names(project["dependencies"]) == core
    extras = project["optional-dependencies"]
    assert set(extras) == {"train", "book"} and "wmse[train]" in extras["book"]
    imported = {"PIL", "sklearn", "pydantic_core"} | core  # Pillow comes with torchvision
    for path in (ROOT / "wmse").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            tops = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"wmse"}
            extra = names(extras["train"]) | names(extras["book"]) - {"wmse"}
            known = imported | extra | {"umap", "numba"}  # umap-learn is imported as umap, and brings numba
            assert tops <= known, f"{path}: {tops - known}"
