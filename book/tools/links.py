"""Check a built site, offline: links and anchors lead somewhere, pictures have words, nothing is fetched."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a page loads by itself when it is opened; an `a href` is only followed by its reader.
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
LOADING_RELATIONS = {"stylesheet", "preload", "icon", "shortcut", "apple-touch-icon", "modulepreload"}


class Page(HTMLParser):
    """Anchors of a page, the addresses that it points to (with whether they are loaded), and its pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.addresses: list[tuple[str, bool]] = []
        self.pictures: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors.update(value for key in ("id", "name") if (value := attributes.get(key)))
        if tag == "img":
            self.pictures.append((attributes.get("src") or "", attributes.get("alt")))
        for key in ("href", "src"):
            if attributes.get(key):
                loaded = (tag, key) in LOADED
                if tag == "link":
                    loaded = bool(LOADING_RELATIONS & set((attributes.get("rel") or "").lower().split()))
                self.addresses.append((attributes[key], loaded))


def problems(site: Path) -> list[str]:
    """One line for each broken link, anchor, picture or outside request in the HTML pages under `site`."""
    site = site.resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    # Sphinx's own templates and copied scripts are not pages of the book.
    pages = {path: page for path, page in pages.items() if "_static" not in path.relative_to(site).parts}
    found = []
    for path, page in pages.items():
        here = path.relative_to(site).as_posix()
        for address, loaded in dict.fromkeys(page.addresses):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if loaded and parts.scheme != "data":
                    found.append(f"{here}: loads {address} from outside")
                continue
            target = path
            if parts.path:
                base = site if parts.path.startswith("/") else path.parent
                target = (base / unquote(parts.path).lstrip("/")).resolve()
            if target.is_dir():
                target = target / "index.html"
            if not target.exists():
                found.append(f"{here}: {address} does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{here}: {address} has no such anchor")
        for source, alt in page.pictures:
            if not alt or alt == source or alt.rsplit("/")[-1] == source.rsplit("/")[-1]:
                found.append(f"{here}: picture {source} has no alt text (metadata mystnb.image.alt)")
    return found


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]))
    print("\n".join(lines) or "no problems")
    sys.exit(bool(lines))
