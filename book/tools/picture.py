"""Draw the README's picture from the pictures of CIFAR-10 on record, and make the site's social card from it.

    make picture

The card is what a messenger or a search engine shows beside a link to the site. It repeats the two clouds of
the picture; `python book/tools/picture.py --card` makes it from the picture that is there.
"""

import base64
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from wmse import figures  # noqa: E402

PICTURES = ROOT / "results" / "pictures" / "cifar10.json"
PICTURE = ROOT / "book" / "_static" / "scattering.svg"
CARD = PICTURE.with_name("social-card.png")
SIZE = (12, 6.3)  # inches at 100 dots: what the networks crop least
# Matplotlib's cloud of points: a bitmap, bottom row first, and where it lies in points of the page.
CLOUD = re.compile(
    r'<image xlink:href="data:image/png;base64,\s*([\w+/=\s]+)"[^>]*'
    r'\sx="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)"'
)
# Rectangles: the page, and the frames around the clouds. Left, bottom, right, top.
FRAME = re.compile(
    r'"patch_\d+">\s*<path d="M ([\d.]+) ([\d.]+) \nL ([\d.]+) \2 \nL \3 ([\d.]+) \nL \1 \4 \nz'
)


def draw(pictures: dict[str, Any]) -> str:
    """The embeddings of MSE and of W-MSE 2 at one scale, side by side, as SVG.

    pictures: the content of `results/pictures/cifar10.json`, which `layouts.py` writes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figures.use_style()
    size = (figures.WIDTH, 3.7)
    figure, axes = plt.subplots(1, 2, figsize=size, sharex=True, sharey=True)
    runs = {run["label"]: run for run in pictures["runs"].values()}
    for ax, label in zip(axes, ("MSE", "W-MSE 2"), strict=True):
        places = np.array(runs[label]["plane"]).reshape(-1, 2) / pictures["scale"]
        figures.scatter(places, np.array(pictures["labels"]), pictures["classes"], ax)
        ax.set_title(f"{label}:\neffective rank {runs[label]['measures']['effective_rank']:.1f}")
        ax.set(xlabel="first component", aspect="equal")
    axes[0].set_ylabel("second component")
    figures.class_legend(figure, axes[0])
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def draw_card(picture: str, path: Path) -> None:
    """Title, logo and the two clouds of `picture`, an SVG, as a PNG of 1200 x 630 dots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Circle, Ellipse
    from PIL import Image

    clouds, frames = CLOUD.findall(picture), FRAME.findall(picture)[1:]  # the first is the page's own
    if len(clouds) != 2 or len(frames) != 2:
        raise ValueError(f"the picture has {len(clouds)} clouds in {len(frames)} frames, not two in two")
    style = {"font.family": "DejaVu Sans", "text.color": "#222222"}
    with plt.style.context(["default", style], after_reset=True):
        figure = plt.figure(figsize=SIZE, dpi=100, facecolor="white")
        logo = figure.add_axes((0.05, 0.76, 0.0945, 0.18), xlim=(0, 32), ylim=(0, 32), aspect="equal")
        logo.set_axis_off()
        logo.add_patch(Ellipse((16, 16), 30, 11, angle=35, color="#D55E00", alpha=0.85))
        logo.add_patch(Circle((16, 16), 8.5, fill=False, edgecolor="#0072B2", linewidth=9))
        figure.text(
            0.165, 0.885, "Whitening for Self-Supervised Learning", size=27, weight="bold", va="center"
        )
        figure.text(
            0.165, 0.805, "W-MSE, taught and reproduced in executable notebooks", size=19, va="center"
        )
        names = ("collapse: without whitening", "scattering: with whitening")
        for left, name, cloud, frame in zip((0.07, 0.53), names, clouds, frames, strict=True):
            x0, bottom, x1, top = map(float, frame)
            ax = figure.add_axes((left, 0.13, 0.40, 0.535), xlim=(x0, x1), ylim=(bottom, top))
            ax.set(xticks=[], yticks=[])
            ax.set_title(name, size=18, pad=8)
            x, y, width, height = map(float, cloud[1:])
            pixels = plt.imread(io.BytesIO(base64.b64decode(cloud[0])))
            # The SVG turns the bitmap over: its first row lies at the lower end.
            ax.imshow(pixels[::-1], extent=(x, x + width, -y + height, -y), zorder=2)
            ax.set(xlim=(x0, x1), ylim=(bottom, top), aspect="equal")
        note = "Embeddings of photographs that neither network has seen, at one scale."
        figure.text(0.5, 0.06, note, size=15, ha="center", va="center", color="#444444")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
        plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    if sys.argv[1:] != ["--card"]:
        PICTURE.write_text(draw(json.loads(PICTURES.read_text("utf-8"))), encoding="utf-8")
        print(PICTURE.relative_to(ROOT))
    draw_card(PICTURE.read_text(encoding="utf-8"), CARD)
    print(CARD.relative_to(ROOT))
