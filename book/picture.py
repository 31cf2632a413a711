"""Take the README's picture from chapter 5 as it was executed last.

make picture
"""

from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = ROOT / "_build" / "stage" / "notebooks" / "05_training.ipynb"
PICTURE = ROOT / "book" / "_static" / "scattering.svg"

if __name__ == "__main__":
    if not EXECUTED.exists():
        raise SystemExit(f"{EXECUTED.relative_to(ROOT)} does not exist: run `make book` first")
    (cell,) = [cell for cell in nbformat.read(EXECUTED, as_version=4).cells if cell.id == "fig-scale"]
    (figure,) = [
        output.data["image/svg+xml"] for output in cell.outputs if "image/svg+xml" in output.get("data", {})
    ]
    PICTURE.write_text(figure, encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
