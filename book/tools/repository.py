"""Change the repository's address, and the version that readers get, wherever they must stand literally.

    make repository URL=https://github.com/OWNER/NAME
    make repository URL=https://github.com/OWNER/NAME@v1.0

`_config.yml` holds both. Links to launch a notebook, commands to clone or install, and the site's address on
GitHub Pages repeat the address, because Colab, a shell and a Markdown viewer read no configuration. After an
@ stands a branch, tag or commit, `branch` of the configuration; without one it stays as it is. The notebooks'
setup cells install the package of that version. Colab opens the notebooks from the branch `colab`, whatever
version is named: the plain edition, which `plain.py` makes.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r"https://github\.com/([A-Za-z0-9-]+)/([A-Za-z0-9._-]+?)(?:\.git|/)?")
PLACEHOLDER = ("wmse-book", "wmse")  # until the repository is published: remove it then
REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSION = re.compile(r"(^repository:\s*\n(?:\s+.*\n)*?\s+branch:\s*)(\S+)", re.MULTILINE)
PLACES = ("_config.yml", "*.md", "*.cff", "book/*.md", "notebooks/*.ipynb")


def current(root: Path = ROOT) -> tuple[str, str]:
    """Owner and name from `_config.yml`."""
    configuration = (root / "_config.yml").read_text()
    found = re.search(r"^repository:\s*\n(?:\s+.*\n)*?\s+url:\s*(\S+)", configuration, re.MULTILINE)
    address = found and ADDRESS.fullmatch(found[1])
    if not address:
        raise ValueError("_config.yml has no repository: url: https://github.com/OWNER/NAME")
    return address[1], address[2]


def published(root: Path = ROOT) -> bool:
    """Whether the address in `_config.yml` is that of a real repository, and not the placeholder."""
    return current(root) != PLACEHOLDER


def version(root: Path = ROOT) -> str:
    """Branch, tag or commit that notebooks install: `branch` in `_config.yml`, "main" without one."""
    found = VERSION.search((root / "_config.yml").read_text())
    return found[2] if found else "main"


def forms(owner: str, name: str) -> list[str]:
    """The ways in which the repository is written: its pages and Git address, Colab's, GitHub Pages'."""
    return [f"github.com/{owner}/{name}", f"/github/{owner}/{name}", f"{owner.lower()}.github.io/{name}"]


def rename(url: str, root: Path = ROOT) -> list[Path]:
    """Write `url`, or URL@VERSION, in place of what stands now; returns the files changed.

    Raises ValueError for other addresses and for what is no name of a version.
    """
    address, at, ref = url.partition("@")
    new = ADDRESS.fullmatch(address)
    if not new or (at and not REF.fullmatch(ref)):
        raise ValueError(
            f"write the address as https://github.com/OWNER/NAME or https://github.com/OWNER/NAME@VERSION, "
            f"not {url!r}: Colab opens no other"
        )
    ref = ref or version(root)
    pairs = list(zip(forms(*current(root)), forms(new[1], new[2]), strict=True))
    installed = re.compile(rf"(git\+https://{re.escape(pairs[0][1])})(?![\w-])(@[\w.-]+)?")
    changed = []
    for path in sorted(path for place in PLACES for path in root.glob(place)):
        text = before = path.read_text(encoding="utf-8")
        for old_form, new_form in pairs:
            text = re.sub(re.escape(old_form) + r"(?![\w-])", new_form, text)
        text = installed.sub(rf"\g<1>@{ref}", text)
        if path.name == "_config.yml":
            text = VERSION.sub(rf"\g<1>{ref}", text)
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
