"""What benchmarks compare is the same work, what they count is right, and the page shows what they wrote."""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import book, ceilings, loss, measuring, page, reference, step, views
from wmse.recipes import get_recipe
from wmse.records import read_records
from wmse.run import Run
from wmse.views import make_views

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SPEED = " ".join((ROOT / "book" / "speed.md").read_text("utf-8").split())


def tiny(name, **changes):
    return replace(get_recipe(name), batch_size=128, precision="float32", **changes)


@pytest.mark.parametrize("method", ["w-mse-2", "vicreg", "byol", "supervised"])
def test_the_parts_together_are_a_step_of_training(method):
    recipe = tiny(f"digits/{method}")
    images = step.noise_images(256, CPU)
    index = torch.arange(128)
    split, whole = (Run(recipe, len(images), CPU) for _ in range(2))
    marks = []
    for _ in range(2):
        step.split_step(split, images, index, marks.append)
        drawn = make_views(
            images.images[index], 2, images.mean, images.std, recipe.views, whole.generators["views"]
        )
        whole.step(drawn, images.labels[index])
    assert marks == list(step.PARTS) * 2 and split.steps_taken == whole.steps_taken == 2
    for one, other in zip(split.networks.parameters(), whole.networks.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_operations_are_those_of_the_layers():
    """ResNet-18 for 32 pixels: 0.5558 G multiply-adds an image, counted by hand from its layers' shapes."""
    recipe = replace(get_recipe("cifar10/w-mse-2"), precision="float32", projector_width=8)
    run = Run(recipe, 1024, CPU)
    counted = step.operations(run, step.noise_images(4, CPU))
    convolutions = 27 * 64 * 32**2 + 4 * 9 * 64**2 * 32**2
    for width, side in ((128, 16), (256, 8), (512, 4)):
        first, shortcut = 9 * width // 2 * width, width // 2 * width
        convolutions += (first + 3 * 9 * width**2 + shortcut) * side**2
    ahead = 2 * (convolutions + 512 * 8 + 8 * 64) * 1024
    assert counted["forward"] == pytest.approx(ahead, rel=1e-6)
    stem = 2 * 27 * 64 * 32**2 * 1024  # whose input needs no gradient
    assert counted["backward"] == pytest.approx(2 * ahead - stem, rel=1e-6)


def test_fewest_bytes_are_those_of_the_layers():
    recipe = tiny("digits/w-mse-2", projector_width=16)
    counted = step.fewest_bytes(Run(recipe, 256, CPU), step.noise_images(4, CPU))
    inputs = 3 * 32**2 + 32 * 16**2 + 64 * 8**2 + 128 * 4**2 + 256 + 16
    outputs = 32 * 16**2 + 64 * 8**2 + 128 * 4**2 + 256 + 16 + 32
    assert counted["forward"] == (inputs + outputs) * 256 * 4
    assert counted["backward"] == (2 * inputs + 4 * outputs) * 256 * 4


def test_the_plain_loop_is_the_same_loss():
    row = loss.compare((3, 64, 8, 32), CPU, rounds=10)  # raises where they differ
    assert row["ratio"] > 0 and row["k"] == 8


def test_pillows_views_and_ours_are_drawn_from_the_same_protocol():
    """Means and deviations of many views of one picture, by both."""
    from PIL import Image

    images = step.noise_images(1, CPU)
    ramp = torch.linspace(0, 255, 32).expand(3, 32, 32).mul(torch.tensor([1.0, 0.6, 0.3])[:, None, None])
    picture = ramp.to(torch.uint8)
    transform = views.pillow_views(get_recipe("cifar10/w-mse-2").views, images.mean, images.std, 32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.stack(
            [transform(Image.fromarray(picture.permute(1, 2, 0).numpy())) for _ in range(600)]
        )
    generator = torch.Generator().manual_seed(0)
    recipe = get_recipe("cifar10/w-mse-2")
    ours = make_views(picture[None], 600, images.mean, images.std, recipe.views, generator)[:, 0]
    assert theirs.shape == ours.shape
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(statistic(theirs), statistic(ours), rtol=0.08, atol=0.08)


def test_ceilings_are_of_a_processor():
    """Between a millionth of what processors do and a thousand times it: units are not mistaken."""
    assert 1e8 < ceilings.copy_bandwidth(CPU, 8) < 1e14
    assert 1e8 < ceilings.product_speed(CPU, torch.float32, 256) < 1e16


def test_the_reference_takes_steps():
    recipe = tiny("digits/w-mse-2")
    steps = reference.reference_steps(recipe, step.noise_images(256, CPU), CPU, workers=0)
    for _ in range(3):
        next(steps)
    pictures = reference.PillowImages(step.noise_images(3, CPU), recipe)
    drawn, label = pictures[2]
    assert len(drawn) == 2 and drawn[0].shape == (3, 32, 32) and label == 2


COMMANDS = {
    "loss": ["--rounds", "2"],
    "views": ["--images", "8", "--rounds", "1"],
    "step": ["--recipe", "digits/w-mse-2", "--steps", "1", "--profile"],
    "reference": ["--recipe", "digits/w-mse-2", "--width", "8", "--steps", "1", "--rounds", "1"],
    "evaluation": ["--rows", "500", "--rounds", "1"],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What every benchmark but the book's writes, at sizes of no interest.

    One is started as a reader starts it, and `reference` starts processes itself; the others run in this one.
    """
    out = tmp_path_factory.mktemp("benchmarks")
    patch = pytest.MonkeyPatch()
    patch.setattr(step, "product_speed", partial(ceilings.product_speed, size=256))
    patch.setattr(step, "copy_bandwidth", partial(ceilings.copy_bandwidth, mebibytes=8))
    for name, flags in COMMANDS.items():
        arguments = ["--device", "cpu", "--out", str(out), *flags]
        if name == "loss":
            command = [sys.executable, "-m", "benchmarks.loss", *arguments]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            printed = done.stdout
        else:
            with contextlib.redirect_stdout(io.StringIO()) as shown:
                importlib.import_module(f"benchmarks.{name}").main(arguments)
            printed = shown.getvalue()
        assert "torch" in printed
    patch.undo()
    return out


def test_every_benchmark_leaves_a_table_with_its_machine(written):
    tables = {table["benchmark"]: table for table in page.read(written)}
    assert {"loss", "views", "step-digits-w-mse-2", "profile-digits-w-mse-2", "reference"} <= set(tables)
    for table in tables.values():
        assert table["rows"] and table["hardware"]["device"] == "cpu"
        assert table["versions"]["torch"] == torch.__version__
    parts = {row["part"]: row for row in tables["step-digits-w-mse-2"]["rows"]}
    assert set(step.PARTS) < set(parts)
    assert sum(parts[part]["share"] for part in step.PARTS) == pytest.approx(100)
    (row,) = tables["reference"]["rows"]
    assert row["ratio"] == pytest.approx(row["wmse"] / row["reference"])
    makers = {row["views"] for row in tables["views"]["rows"]}
    assert ("kornia, slice" in makers) == (importlib.util.find_spec("kornia") is not None)
    assert list(written.glob("trace-*.json.gz"))


def test_the_page_shows_what_is_in_the_files(written, tmp_path):
    before = page.markdown(written)
    assert "No GPU has been measured yet" in before and page.GPU_COMMAND in before
    for path in written.glob("*/*.json"):
        table = json.loads(path.read_text())
        folder = tmp_path / path.parent.name
        folder.mkdir(exist_ok=True)
        if table["benchmark"] == "loss":
            table["rows"][0]["ratio"] = 98.76
            table["hardware"]["device"] = "cuda"
        (folder / path.name).write_text(json.dumps(table))
    after = page.markdown(tmp_path)
    assert "98.8" in after and "98.8" not in before
    assert "No GPU has been measured yet" not in after
    assert page.markdown(tmp_path / "nowhere").startswith(page.NONE_YET)


def a_table(benchmark, machine, device, rows, **more):
    columns = {key: key for row in rows for key in row}
    made = {
        "benchmark": benchmark,
        "title": f"A {benchmark.replace('-', ' ')}",
        "machine": machine,
        "git": None,
    }
    made |= {"columns": columns, "rows": rows, "hardware": {"device": device}, "notes": ""}
    return made | {"versions": {"torch": "2", "python": "3"}, "measured": "2026-01-01"} | more


def test_what_a_gpu_has_measured_comes_first_and_a_missing_commit_is_said(tmp_path):
    whole = [{"ms": 10.0}, {"ms": 20.0, "times": 4.0, "views": 45_000.0}]
    kernels = {
        "void at::native::batch_norm_x_kernel<at::native::": (1.0, 2.5, 9.0),
        "void at::native::vectorized_elementwise_kernel<8, x": (2.0, 1.5, 5.0),
        "void at::native::vectorized_elementwise_kernel<8, y": (3.0, 2.0, 7.0),
        "Memset (Unknown)": (7.0, 0.5, 1.0),
    }
    keys = "operator", "calls", "ms", "share"
    kernels = [dict(zip(keys, (name, *values), strict=True)) for name, values in kernels.items()]
    for table in (
        a_table("step-b", "A CPU", "cpu", whole),
        a_table("step-a", "A CPU", "cpu", whole),
        a_table("step-b", "The GPU", "cuda", whole),
        a_table("profile-b", "The GPU", "cuda", kernels),
        a_table("loss", "A CPU", "cpu", [{"ms": 1.0}], git={"commit": "0123456789", "dirty": False}),
    ):
        folder = tmp_path / table["machine"]
        folder.mkdir(exist_ok=True)
        (folder / f"{table['benchmark']}.json").write_text(json.dumps(table))
    shown = [(table["benchmark"], table["machine"]) for table in page.read(tmp_path)]
    gpu_first = [("step-b", "The GPU"), ("profile-b", "The GPU"), ("step-b", "A CPU"), ("step-a", "A CPU")]
    assert shown == [*gpu_first, ("loss", "A CPU")]
    text = page.markdown(tmp_path)
    assert "| The GPU | `b` | 45,000 | 50 | 4.00 |" in text
    assert text.count("## A step b") == 1 and text.count("no commit known") == 4 and "commit 0123456." in text
    assert "6.5 ms together on The GPU: passes element by element 3.5 ms, BatchNorm 2.5 ms" in text
    assert "| `vectorized_elementwise` | 5.00 | 3.50 | 12.0 |" in text, "rows of one name are added up"


NAMES = {
    "void at::native::batch_norm_backward_elemt_channels_last_kernel<4, c10::BFloat16": (
        "batch_norm_backward_elemt"
    ),
    "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c1": (
        "vectorized_elementwise CUDAFunctor_add"
    ),
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(a": "multi_tensor_apply",
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128": (
        "xmma_fprop_implicit_gemm"
    ),
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_": "cutlass_tensorop",
    "_ZN17cutlass__5x_cudnn6KernelINS_4conv6kernel23ImplicitGemmConvolutionINS1_11thr": (
        "ImplicitGemmConvolution"
    ),
    "aten::convolution_backward": "aten::convolution_backward",
    "Memset (Unknown)": "Memset (Unknown)",
}


@pytest.mark.parametrize(("name", "short"), NAMES.items())
def test_names_of_kernels_fit_a_phone(name, short):
    assert page.short_name(name) == short and len(short) <= 40


def test_what_the_page_says_of_the_gpu_is_in_its_tables():
    """book/speed.md in words: the goal is missed; no kind of kernel is alone to blame; launches are few."""
    tables = {(t["benchmark"], t["hardware"]["device"]): t for t in page.read(measuring.RESULTS)}
    whole = tables["step-cifar10-w-mse-2", "cuda"]["rows"][-1]
    assert whole["views"] < page.GOAL and f"{page.GOAL:,} views per second" in SPEED
    taken = dict.fromkeys(page.KINDS, 0.0)
    for row in tables["profile-cifar10-w-mse-2", "cuda"]["rows"]:
        if (kind := page.kernel_kind(row["operator"])) in taken:
            taken[kind] += row["ms"]
    products, passes = taken.pop("convolutions and other products"), sum(taken.values())
    assert passes > products, "BatchNorm and passes element by element take more than the convolutions"
    now = {row["recipe"]: row for row in tables["launches", "cpu"]["rows"] if row["code"] == "now"}
    assert now["cifar10/w-mse-2"]["host"] < whole["ms"] / 4, "the host is not the limit"
    assert f"{now['cifar10/w-mse-2']['step']} launches" in SPEED
    runs = [entry.record for entry in read_records(ROOT / "results" / "cifar10-25")[0]]
    evaluation = [r.wall_seconds - r.train_seconds for r in runs if r.hardware["device"] == "cuda"]
    assert f"adds {min(evaluation):.0f} to {max(evaluation):.0f} seconds to a run" in SPEED
    shares = [1 - r.train_seconds / r.wall_seconds for r in runs if r.hardware["device"] == "cuda"]
    assert "almost a third" in SPEED and 0.27 < max(shares) < 1 / 3


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void at::native::batch_norm_backward_reduce_channels_last_kernel<4", "BatchNorm"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float", "BatchNorm"),
        ("void cudnn::batchnorm_fwtr_nhwc_semiPersist<", "BatchNorm"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", "convolutions and other products"),
        ("Memset (Unknown)", "all others"),
    ],
)
def test_kernels_of_batchnorm_are_no_convolutions_whichever_library_has_them(name, kind):
    assert page.kernel_kind(name) == kind


@pytest.mark.parametrize("content", ["", "{}", '{"rows": 3}', "[1]"])
def test_a_file_that_is_no_table_is_named(content, tmp_path):
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / "loss.json").write_text(content)
    with pytest.raises(ValueError, match=r"machine.loss\.json"):
        page.markdown(tmp_path)


def test_numbers_are_shown_to_three_digits():
    shown = [page.shown(value) for value in (None, 0.0, 1234.5, 12.34, 1.234, 0.01234, 12345, "a|b", True)]
    assert shown == ["", "0", "1,234", "12.3", "1.23", "0.0123", "12,345", "a|b", "True"]


def test_forms_are_timed_in_turns():
    calls = []
    times = measuring.medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 4, CPU, 2)
    assert "".join(calls) == "aabb" * 3 and set(times) == {"a", "b"}


def test_the_books_benchmark_builds_a_copy_without_outputs(tmp_path):
    book.copied(ROOT, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(book.SOURCES)
    assert not list(tmp_path.rglob("__pycache__"))
    with pytest.raises(RuntimeError, match="no notebook nothing"):
        book.python("book/tools/build.py", "--only", "nothing", folder=tmp_path)
