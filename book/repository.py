"""Change the repository's address wherever it must stand literally.

    make repository URL=https://github.com/OWNER/NAME

`_config.yml` holds the address. Links to launch a notebook, commands to clone or install, and the site's
address on GitHub Pages repeat it, because Colab, a shell and a Markdown viewer read no configuration.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r"https://github\.com/([A-Za-z0-9-]+)/([A-Za-z0-9._-]+?)(?:\.git|/)?")
PLACES = ("_config.yml", "*.md", "*.cff", "book/*.md", "notebooks/*.ipynb")


def current(root: Path = ROOT) -> tuple[str, str]:
    """Owner and name from `_config.yml`."""
    configuration = (root / "_config.yml").read_text()
    found = re.search(r"^repository:\s*\n(?:\s+.*\n)*?\s+url:\s*(\S+)", configuration, re.MULTILINE)
    address = found and ADDRESS.fullmatch(found[1])
    if not address:
        raise ValueError("_config.yml has no repository: url: https://github.com/OWNER/NAME")
    return address[1], address[2]


def forms(owner: str, name: str) -> list[str]:
    """The ways in which the repository is written: its pages and Git address, Colab's, GitHub Pages'."""
    return [f"github.com/{owner}/{name}", f"/github/{owner}/{name}", f"{owner.lower()}.github.io/{name}"]


def rename(url: str, root: Path = ROOT) -> list[Path]:
    """Write `url` in place of the present address; returns the files changed. ValueError for other URLs."""
    new = ADDRESS.fullmatch(url)
    if not new:
        raise ValueError(
            f"write the address as https://github.com/OWNER/NAME, not {url!r}: Colab opens no other"
        )
    pairs = list(zip(forms(*current(root)), forms(new[1], new[2]), strict=True))
    changed = []
    for path in sorted(path for place in PLACES for path in root.glob(place)):
        text = before = path.read_text(encoding="utf-8")
        for old_form, new_form in pairs:
            text = re.sub(re.escape(old_form) + r"(?![\w-])", new_form, text)
        if text != before:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    try:
        for path in rename(sys.argv[1] if len(sys.argv) > 1 else ""):
            print(path.relative_to(ROOT))
    except ValueError as error:
        sys.exit(str(error))
