"""The drawing of the method is for every screen and reader, and its round cloud is the long one, whitened."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import torch

from wmse.figures import OKABE_ITO
from wmse.whitening import whiten

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "tools"))
import slides  # noqa: E402

FILE = ROOT / "book" / "_static" / "method.svg"
SVG = ElementTree.parse(FILE).getroot()
SPACE = "{http://www.w3.org/2000/svg}"
WORDS = SVG.find(f"{SPACE}desc").text
PHONE = 350  # pixels for a picture on a screen that is 390 wide


def test_it_has_words_and_each_place_that_shows_it_says_them():
    assert SVG.get("role") == "img" and SVG.get("aria-labelledby") == "title desc"
    assert SVG.find(f"{SPACE}title").text and len(WORDS) > 100
    assert f":alt: {WORDS}\n" in (ROOT / "book" / "preface.md").read_text("utf-8")
    chapter = nbformat.read(ROOT / "notebooks" / "01_first_run.ipynb", as_version=4)
    assert [cell for cell in chapter.cells if f"![{WORDS}](../book/_static/method.svg)" in cell.source]
    lecture = slides.lectures(ROOT / "book" / "slides.yml")[0]
    assert [slide for slide in lecture["slides"] if slide.get("drawing") == FILE.name]


def test_its_text_stands_within_it_is_large_enough_on_a_phone_and_in_the_order_of_the_method():
    _, _, width, height = map(float, SVG.get("viewBox").split())
    scale = PHONE / width
    labels = []
    for group in SVG.iter(f"{SPACE}g"):
        for text in group.findall(f"{SPACE}text"):
            size = float(group.get("font-size"))
            assert size * scale >= 10, f"{text.text!r} would be {size * scale:.1f} pixels high"
            half = 0.56 * size * len(text.text) / 2  # a wide face; the anchor is the middle
            assert 0 <= float(text.get("x")) - half and float(text.get("x")) + half <= width, text.text
            assert float(text.get("y")) < height
            labels.append(text.text)
    assert labels[:6] == ["image", "two views", "encoder", "projector", "whitening", "loss"]
    assert SVG.get("font-family").endswith("sans-serif")


def test_it_brings_its_own_ground_okabe_itos_colours_and_nothing_from_outside():
    text = FILE.read_text("utf-8")
    ground = next(iter(SVG.iter(f"{SPACE}rect")))
    assert (ground.get("fill"), ground.get("width"), ground.get("height")) == (
        "#FFFFFF",
        SVG.get("width"),
        SVG.get("height"),
    ), "dark text needs it in a dark theme"
    strong = {
        found
        for found in re.findall(r"#[0-9A-F]{6}", text)
        if max(bytes.fromhex(found[1:])) - min(bytes.fromhex(found[1:])) > 40  # no grey and no tint
    }
    assert {"#0072B2", "#D55E00"} <= strong <= set(OKABE_ITO)
    assert not re.search(r"<script|href|url\(|<image|http(?!://www\.w3\.org/2000/svg)", text)
    assert "stroke-dasharray" in text, "the strands differ in more than colour"


def places(name):
    """The points of a cloud, one tensor of shape (8, 2) for each view, in the cloud's own coordinates."""
    (group,) = (group for group in SVG.iter(f"{SPACE}g") if group.get("id") == name)
    across, down = map(float, group.get("data-origin").split())
    scale = float(group.get("data-scale"))
    first = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in group.findall(f"{SPACE}circle")]
    second = [
        (
            float(box.get("x")) + float(box.get("width")) / 2,
            float(box.get("y")) + float(box.get("height")) / 2,
        )
        for box in group.findall(f"{SPACE}rect")
    ]
    return [
        torch.tensor([((x - across) / scale, (down - y) / scale) for x, y in view], dtype=torch.float64)
        for view in (first, second)
    ]


def test_the_round_cloud_is_the_long_one_whitened():
    for long, white in zip(places("cloud"), places("white"), strict=True):
        assert len(long) == len(white) >= 6
        torch.testing.assert_close(torch.cov(white.T), torch.eye(2, dtype=torch.float64), atol=0.02, rtol=0)
        lengths = torch.linalg.eigvalsh(torch.cov(long.T))
        assert lengths[1] > 10 * lengths[0], "long and thin"
        # What is drawn is rounded to a tenth of a pixel, which whitening magnifies across the thin direction.
        torch.testing.assert_close(whiten(long), white, atol=0.1, rtol=0)
