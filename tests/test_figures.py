"""Figures show what they are given: every run, every class, and in words what would squeeze the rest."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pytest
import torch

from wmse import figures

ROOT = Path(__file__).resolve().parents[1]
matplotlib.use("Agg")
PANELS = {
    "accuracy": {"a": [90.0, 91.0, 92.0], "b": [91.5, 92.5], "c": [20.0, 30.0], "d": []},
    "dimensions": {"a": [20.0, 21.0, 22.0], "b": [21.0, 22.0], "c": [19.0, 21.5], "d": []},
}


@pytest.fixture(autouse=True)
def closed():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def chapters_function(chapter, cell, **names):
    """The one function that a cell of a chapter defines; `names` are what the cell uses."""
    cells = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4).cells
    (source,) = [one.source for one in cells if one.id == cell]
    exec(source, names)
    return names[cell.replace("-", "_")]


@pytest.fixture(scope="module")
def seeds_by_setting():
    import matplotlib.pyplot as plt

    return chapters_function("10_ablations", "seeds-by-setting", figures=figures, np=np, plt=plt)


def marks(ax):
    return [list(line.get_xdata()) for line in ax.lines if line.get_marker() not in ("None", "", None)]


def words(ax):
    return [text.get_text() for text in ax.texts]


def test_each_run_has_a_mark_and_each_setting_a_bar_at_its_mean(seeds_by_setting):
    figure = seeds_by_setting(PANELS, "choice")
    for ax, values in zip(figure.axes, PANELS.values(), strict=True):
        assert marks(ax) == [runs for runs in values.values() if runs]
        bars = [bar.get_segments()[0][0][0] for bar in ax.collections]
        assert bars == pytest.approx([np.mean(runs) for runs in values.values() if runs])
        assert words(ax) == ["no run yet"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["a", "b", "c", "d"] and figure.get_suptitle() == "choice"
    assert words(seeds_by_setting(PANELS, "choice", {"d": "broke down"}).axes[0]) == ["broke down"]


def test_a_setting_far_off_is_told_at_the_edge_where_it_is_far_off(seeds_by_setting):
    accuracy, dimensions = seeds_by_setting(PANELS, "choice", outside=["c"]).axes
    assert words(accuracy) == ["← 20 to 30", "no run yet"] and [20.0, 30.0] not in marks(accuracy)
    assert accuracy.get_xlim()[0] > 80
    assert words(dimensions) == ["no run yet"] and [19.0, 21.5] in marks(dimensions)
    above = {"x": {"a": [1.0, 2.0], "c": [90.0]}}
    assert words(seeds_by_setting(above, "choice", outside=["c"]).axes[0]) == ["90 →"]


# What eyes without one kind of cone see of linear RGB, at severity 1.0: Machado, Oliveira and Fernandes,
# "A physiologically-based model for simulation of color vision deficiency", IEEE TVCG 15(6), 2009.
SIGHT = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
}
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)  # of linear sRGB


def least_difference(colours, matrix):
    """The smallest distance of two colours in CIELAB, as eyes with that matrix see them."""
    rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.transpose(matrix), 0, 1) @ TO_XYZ.T / TO_XYZ.sum(1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    return min(np.linalg.norm(one - other) for one, other in combinations(lab, 2))


@pytest.mark.parametrize("sight", SIGHT)
def test_ten_classes_have_ten_colours_that_colour_blind_readers_can_tell_apart(sight):
    """A difference of 2.3 in CIELAB is just noticeable; small marks need several times as much."""
    assert len(figures.CLASS_COLOURS) == len(figures.MARKERS) == 10
    assert least_difference(figures.CLASS_COLOURS, SIGHT[sight]) > 15
    red_and_green = ["#9E5A00", "#5F7300"]
    assert (least_difference(red_and_green, SIGHT[sight]) < 15) == (sight != "all cones"), "the test can fail"


def test_a_legend_and_a_cloud_show_each_class_in_its_own_colour():
    import matplotlib.pyplot as plt

    ax = figures.scatter(np.zeros((10, 2)), torch.arange(10), list("0123456789"), plt.gca())
    shown = [matplotlib.colors.to_hex(drawn.get_facecolor()[0]).upper() for drawn in ax.collections]
    assert shown == list(figures.CLASS_COLOURS) and shown[0] != shown[8]


def test_classes_differ_in_more_than_colour():
    import matplotlib.pyplot as plt

    labels = torch.arange(10).repeat(3)
    ax = figures.scatter(
        np.random.default_rng(0).random((30, 2)), labels, [str(n) for n in range(10)], plt.gca()
    )
    shapes = {tuple(map(tuple, drawn.get_paths()[0].vertices.round(3))) for drawn in ax.collections}
    assert len(shapes) == len(ax.collections) == 10
    assert all(len(drawn.get_offsets()) == 3 for drawn in ax.collections)


@pytest.mark.parametrize(
    "images", [torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8), torch.rand(7, 3, 4, 4)]
)
def test_images_stand_row_by_row(images):
    canvas = figures.image_grid(images, columns=5).images[0].get_array()
    scale = 255 if images.dtype == torch.uint8 else 1
    assert canvas.shape == (10, 28, 3)
    assert np.allclose(canvas[6:10, 6:10], images[6].permute(1, 2, 0).numpy() / scale), "the seventh"
    assert np.allclose(canvas[6:, 12:], 1.0), "white where no image is"


def test_no_default_figure_is_wider_than_a_phone_can_show(seeds_by_setting):
    with matplotlib.rc_context():
        figures.use_style()
        assert matplotlib.rcParams["figure.figsize"][0] == figures.WIDTH
    assert seeds_by_setting(PANELS, "choice").get_figwidth() <= figures.WIDTH


def test_titles_load_neither_torch_nor_numpy_nor_matplotlib():
    check = "import sys, wmse.figures; print(sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


UNWRITABLE = """
import os, tempfile
usual = tempfile.TemporaryFile
def refusing(*arguments, dir=None, **options):
    if str(dir).endswith("__pycache__"):
        raise PermissionError(13, "Permission denied", dir)
    return usual(*arguments, dir=dir, **options)
tempfile.TemporaryFile = refusing  # with this numba asks whether it may write beside the package
from wmse.figures import load_umap
print(load_umap().UMAP.__name__)
print(os.environ["NUMBA_CACHE_DIR"], len(os.listdir(os.environ["NUMBA_CACHE_DIR"])))
"""


@pytest.mark.parametrize("chosen", [False, True], ids=["no folder chosen", "a folder chosen"])
def test_umap_gets_a_temporary_cache_where_no_folder_is_writable(tmp_path, chosen):
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "below")  # not even root can make a folder there
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment |= {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "IPYTHONDIR": nowhere}
    environment |= {"TMPDIR": str(tmp_path), "MPLCONFIGDIR": str(tmp_path)}
    environment |= {"NUMBA_CACHE_DIR": nowhere} if chosen else {}
    command = [sys.executable, "-c", UNWRITABLE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, cache = done.stdout.splitlines()
    assert name == "UMAP" and cache.startswith(str(tmp_path / "numba-")) and not cache.endswith(" 0")
    assert not list(tmp_path.glob("numba-*")), "it is removed in the end"


def test_a_table_has_numbers_to_the_right_and_keeps_its_columns():
    text = figures.markdown_table(["what", "value"], [["a|b", "1"], iter(["c", "2"])], (1,))
    assert text == "| what | value |\n| :-- | --: |\n| a\\|b | 1 |\n| c | 2 |"
