"""Every page of the built site, in a browser: whole, quiet, narrow enough, and fit to be read by everyone."""

import gzip
import re
from collections import defaultdict
from urllib.parse import unquote, urlsplit

import pytest
from conftest import SITE

NOT_PAGES = {"genindex.html", "search.html", "searchindex.html", "py-modindex.html", "prf-prf.html"}
FORWARD = "index.html"  # only leads on to the preface
OF_A_KIND = 10  # pages in one folder; of more, as of records, three are enough
WIDTHS = (1280, 390)
COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}  # what a theme changes
LIMIT = 2_000_000  # bytes of the first chapter
# What is cut where the screen is narrow: formulas wider than their box, and figures so much smaller than
# drawn that their smallest text, 11 points, is less than 9.5 pixels high.
CUT = """() => {
    const cut = [];
    for (const formula of document.querySelectorAll("article mjx-container[display=true]")) {
        const box = formula.closest("div.math") || formula.parentElement;
        const more = Math.max(box.scrollWidth - box.clientWidth, formula.scrollWidth - formula.clientWidth);
        if (more > 1) cut.push(`formula in ${box.closest("[id]")?.id}: ${more} px`);
    }
    for (const image of document.querySelectorAll("article .cell_output img")) {
        const text = (11 * 96 / 72) * (image.clientWidth / image.naturalWidth);
        if (image.naturalWidth && text < 9.5) cut.push(`figure in ${image.closest("[id]")?.id}: ${text} px`);
    }
    return cut;
}"""
# Code of a chapter that is wider than its box; folded code has no width.
WIDE_CODE = """() => [...document.querySelectorAll("article .cell_input pre")]
    .filter((code) => code.scrollWidth > code.clientWidth + 1)
    .map((code) => code.textContent.split("\\n").sort((a, b) => b.length - a.length)[0])"""
# Reading text: what is neither code nor formula.
TEXT = """() => {
    const copy = (document.querySelector("article") || document.body).cloneNode(true);
    const written = "pre, code, script, style, mjx-container, dt.sig";
    copy.querySelectorAll(written).forEach((element) => element.remove());
    return copy.textContent;
}"""
RAW = re.compile(
    r"\{[a-z:-]+\}`|^\s*:::|\$\$|\$\\|\\(?:frac|begin|end|Sigma|top|mathbb)\b|\*\*\S|\]\(\S+\)|</?(?:div|span|p|b)\b",
    re.MULTILINE,
)


def pages():
    """Addresses of the pages, with few of many that are alike; the record pages lie in folders by recipe."""
    folders = defaultdict(list)
    for path in sorted(SITE.rglob("*.html")):
        page = path.relative_to(SITE)
        if "_static" not in page.parts and page.name not in NOT_PAGES and str(page) != FORWARD:
            records = page.parts[:2] == ("book", "records") and page.name != "index.html"
            folders["records" if records else page.parent].append(page.as_posix())
    chosen = []
    for folder, found in folders.items():
        many = folder == "records" and len(found) > OF_A_KIND
        chosen += [found[0], found[len(found) // 2], found[-1]] if many else found
    return chosen or [pytest.param("", marks=pytest.mark.skip("the site is not built: make book"))]


def opened(context, url):
    """A page, drawn to the last formula, and a list to which it writes its complaints."""
    page, complaints = context.new_page(), []
    own = "{0.scheme}://{0.netloc}/".format(urlsplit(url))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("response", lambda r: r.status >= 400 and complaints.append(f"{r.status}: {r.url}"))

    def requested(request):
        if not request.url.startswith((own, "data:", "blob:")):
            complaints.append(f"from outside: {request.url}")

    page.on("request", requested)
    page.goto(url, wait_until="load")
    page.evaluate("window.MathJax?.startup?.promise")
    return page, complaints


def findings(page, **options):
    """What axe-core holds to be serious or critical, a line each.

    Formulas, many strokes, are left out, and so are the lists of arguments that Sphinx sets in a signature.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing: make browser")
    options = {"resultTypes": ["violations"], "preload": False, **options}
    found = axe.Axe().run(page, context={"exclude": [["mjx-container"], ["dt.sig > dl"]]}, options=options)
    return [
        f"{one['impact']} {one['id']}: {[node['target'] for node in one['nodes']][:5]}"
        for one in found.response["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("name", pages())
def test_page_is_whole_and_for_everyone(name, context, address):
    page, complaints = opened(context, f"{address}/{name}")
    text = page.evaluate(TEXT)
    raw = [text[max(0, m.start() - 30) : m.end() + 30] for m in RAW.finditer(text)]
    assert not raw, "markup was left as it is written"
    assert page.locator("article .problematic, article [data-mjx-error]").count() == 0
    wide = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        wide[width] = page.evaluate("document.scrollingElement.scrollWidth")
    assert all(wide[width] <= width for width in WIDTHS), f"scrolls sideways; widths of the content: {wide}"
    assert page.evaluate(CUT) == []
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    assert page.evaluate(WIDE_CODE) == []
    assert not findings(page)
    if not name.startswith("slides/"):  # made for projection and paper, they have one theme
        page.emulate_media(color_scheme="dark")
        page.wait_for_selector("html[data-theme=dark]", state="attached")
        assert not findings(page, runOnly=COLOURS), "in the dark theme"
    assert not complaints


def test_the_tests_see_what_is_wrong(context, address):
    page, complaints = opened(context, f"{address}/book/preface.html")
    assert not complaints
    page.set_content(
        '<article>**bold** {term}`slice`<p style="width: 2000px">x</p><img src="none.png"></article>'
    )
    assert len(RAW.findall(page.evaluate(TEXT))) == 2
    assert page.evaluate("document.scrollingElement.scrollWidth") > WIDTHS[0]
    assert any(finding.startswith("critical image-alt") for finding in findings(page))
    picture = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='800' height='9'/>"
    page.set_content(
        f"""<article style="width: 300px"><div id="f"><mjx-container display="true" style="display: block">
        <p style="width: 400px">x</p></mjx-container></div>
        <div class="cell_input"><pre style="overflow: auto">{"wide " * 99}</pre></div>
        <div class="cell_output"><img id="i" width="300" src="{picture}"></div></article>"""
    )
    page.wait_for_function("document.images[0].complete")
    assert [one.split(":")[0] for one in page.evaluate(CUT)] == ["formula in f", "figure in i"]
    assert len(page.evaluate(WIDE_CODE)) == 1
    page.evaluate("console.error('heard')")
    assert "heard" in complaints


def test_the_first_chapter_is_light(context, address):
    """HTML and figures as they lie on disk, and all it loads, packed. MathJax, the same for every
    page and fetched once, is counted apart."""
    page, loaded = context.new_page(), set()
    page.on("requestfinished", lambda request: loaded.add(unquote(urlsplit(request.url).path).lstrip("/")))
    page.goto(f"{address}/notebooks/01_first_run.html", wait_until="networkidle")
    files = {name: (SITE / name).read_bytes() for name in loaded if (SITE / name).is_file()}
    packed = {name: min(len(content), len(gzip.compress(content))) for name, content in files.items()}
    mathjax = packed.pop("_static/tex-svg.js")
    sent = sum(packed.values())
    own = sum(len(files[name]) for name in files if name.startswith(("_images/", "notebooks/")))
    print(f"HTML and figures {own:,} bytes; all but MathJax, packed, {sent:,}; MathJax, packed, {mathjax:,}")
    assert sent < LIMIT
    assert own < LIMIT


WIDE_TABLES = """() => [...document.querySelectorAll("article table")]
    .filter((table) => table.scrollWidth > table.parentElement.clientWidth + 1)
    .map((table) => `${table.querySelector("th")?.textContent}: ${table.scrollWidth} px`)"""


@pytest.mark.parametrize("name", ["notebooks/09_tables.html", "book/speed.html"])
def test_no_table_is_cut_on_a_phone(name, context, address):
    page, _ = opened(context, f"{address}/{name}")
    page.set_viewport_size({"width": WIDTHS[1], "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.wait_for_timeout(300)  # for the observers of sizes
    assert page.locator("article table").count() > 3 and page.evaluate(WIDE_TABLES) == []
    for cell in page.locator("table.listed td").all()[:20]:
        assert cell.get_attribute("data-name"), "each cell says its column's name"
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.wait_for_timeout(300)
    assert page.locator("table.listed").count() == 0


# Marks that begin a line, though they belong to the formula before them.
ORPHANS = """() => [...document.querySelectorAll("article span.math")].flatMap((formula) => {
    const after = formula.nextSibling;
    const mark = after?.nodeType === Node.TEXT_NODE && after.data.match(/^[,.;:?!)]/);
    if (!mark) return [];
    const range = document.createRange();
    range.setStart(after, 0);
    range.setEnd(after, 1);
    return range.getBoundingClientRect().top > formula.getBoundingClientRect().bottom - 2
        ? [formula.parentElement.textContent.slice(0, 40)] : [];
})"""


def test_no_comma_begins_a_line_on_a_phone(context, address):
    page, _ = opened(context, f"{address}/notebooks/03_whitening.html")
    assert page.locator("article .unbroken").count() > 10
    for width in range(360, 420, 6):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(ORPHANS) == [], f"{width} pixels wide"


def test_the_landing_page_has_no_holes_and_a_film_that_waits(context, address):
    page, _ = opened(context, f"{address}/book/preface.html")
    for row in page.locator(".landing > .sd-row").all():
        ends = []
        for column in row.locator(":scope > .sd-col").all():
            box = column.locator(":scope > *").last.bounding_box()
            ends.append(box["y"] + box["height"])
        assert max(ends) - min(ends) < 80, "a column ends far above its neighbour"
    film = page.locator(".film.small")
    assert film.bounding_box()["height"] < 400 and film.locator("canvas.cloud").count() == 2
    before = film.locator("output").inner_text()
    page.wait_for_timeout(1500)
    assert film.locator("output").inner_text() == before and film.locator(".play").inner_text() == "Play"
    film.locator(".play").click()
    page.wait_for_timeout(1500)
    assert film.locator("output").inner_text() != before


def test_links_that_need_the_repository_say_that_it_is_not_published(context, address):
    configuration = (SITE.parents[1] / "_config.yml").read_text("utf-8")
    if "not-published.js" not in configuration:
        pytest.skip("the repository is published")
    page, _ = opened(context, f"{address}/notebooks/03_whitening.html")
    assert page.locator(".bd-header-announcement").count() == 0
    dead = page.locator('a[href*="colab.research.google.com"], .article-header-buttons a[href*="github.com"]')
    assert dead.count() >= 2
    for link in dead.all():
        said = link.get_attribute("data-bs-original-title") or link.get_attribute("title")
        assert said.startswith("Not published yet"), link.get_attribute("href")


def test_the_first_address_leads_to_the_preface(context, address):
    page = context.new_page()
    page.goto(f"{address}/{FORWARD}")
    page.wait_for_url("**/book/preface.html")
