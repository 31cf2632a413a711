"""What others show of the site: its address follows the repository's, its card is drawn from the picture."""

import json
import re
import struct
from pathlib import Path

import picture
import pytest
import repository
import yaml

from wmse import figures

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "book" / "_static"


SPHINX = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]


def size(path):
    """Width and height that a PNG states."""
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", header[16:])


def test_the_sites_address_is_the_repositorys_on_github_pages():
    owner, name = repository.current(ROOT)
    assert SPHINX["ogp_site_url"] == f"https://{owner.lower()}.github.io/{name}/"


def test_the_card_is_there_small_and_of_the_usual_size():
    card = ROOT / "book" / SPHINX["ogp_image"]
    assert card == picture.CARD and card.stat().st_size < 200_000
    assert size(card) == (1200, 630)
    assert len(SPHINX["ogp_image_alt"]) > 20


def test_the_card_is_drawn_from_the_picture_and_is_the_same_each_time(tmp_path):
    drawing = picture.PICTURE.read_text(encoding="utf-8")
    picture.draw_card(drawing, tmp_path / "a.png")
    figures.use_style()  # of the chapters: the card has its own
    picture.draw_card(drawing, tmp_path / "b.png")
    assert size(tmp_path / "a.png") == (1200, 630)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    turned = drawing.replace('y="-', 'y="-1', 1)  # a cloud elsewhere is another card
    assert turned != drawing
    picture.draw_card(turned, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "a.png").read_bytes()


def test_the_picture_is_of_the_networks_on_record():
    pictures = json.loads(picture.PICTURES.read_text(encoding="utf-8"))
    drawn, committed = picture.draw(pictures), picture.PICTURE.read_text(encoding="utf-8")
    ranks = {run["label"]: run["measures"]["effective_rank"] for run in pictures["runs"].values()}
    for text in (drawn, committed):
        assert re.findall(r"effective rank ([\d.]+)", text) == [f"{ranks[m]:.1f}" for m in ("MSE", "W-MSE 2")]
        assert len(picture.CLOUD.findall(text)) == 2


def test_another_picture_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 clouds"):
        picture.draw_card("<svg></svg>", tmp_path / "card.png")


def test_what_the_site_loads_is_there():
    for key in ("html_css_files", "html_js_files"):
        names = [
            entry if isinstance(entry, str) else entry[0] for entry in SPHINX[key]
        ]  # or [name, attributes]
        assert all((STATIC / name).is_file() for name in names)
