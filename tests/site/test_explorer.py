"""Chapter 3's explorer, driven in a browser by mouse and by keys: its numbers are the package's."""

import filecmp
import itertools
from pathlib import Path

import pytest
import torch
from conftest import SITE

from wmse.whitening import whiten

SCRIPTS = Path(__file__).resolve().parents[2] / "book" / "_static"
METHODS = ["cholesky", "zca", "pca", "newton-schulz"]
STATE = "window.whiteningExplorer.state()"


@pytest.fixture
def page(context, address):
    for name in ("explorer.js", "whiten2d.js", "explorer.css"):
        built = SITE / "_static" / name
        if not built.exists() or not filecmp.cmp(SCRIPTS / name, built, shallow=False):
            pytest.skip(f"the site holds another {name} than book/_static: make book")
    window = context.new_page()
    window.goto(f"{address}/notebooks/03_whitening.html")
    window.wait_for_function("window.whiteningExplorer")
    return window


def handle(page, name):
    return page.locator(f"#whitening-explorer [role=button][aria-label^='{name}']")


def choose(page, method=None, **numbers):
    """Set a method and numbers as a reader does, by the fields of the form."""
    if method:
        page.check(f"input[value={method}]")
    for name, value in numbers.items():
        page.fill(f"#explorer-{name}", str(value))


def drag(page, mark, dx, dy):
    """Drag a mark by pixels, in a few steps as a hand does."""
    mark.scroll_into_view_if_needed()
    box = mark.locator(".target").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def compared(page):
    """The state, after each slice was compared with `whiten` in value and in what is refused."""
    state = page.evaluate(STATE)
    settings, points = state["settings"], tensor(state["points"])
    size, count = settings["sliceSize"], len(points) // settings["sliceSize"]
    assert len(state["slices"]) == count
    for x, found in zip(points[: count * size].reshape(count, size, 2), state["slices"], strict=True):
        try:
            z = whiten(x, settings["method"], settings["eps"], settings["steps"])
        except ValueError as error:
            assert found["refused"], f"the package refuses: {error}"
            assert found["W"] is found["whitened"] is found["after"] is None
            continue
        assert not found["refused"]
        centred = x - x.mean(0)
        torch.testing.assert_close(tensor(found["whitened"]), z, rtol=1e-9, atol=1e-9)
        if settings["eps"] or torch.linalg.matrix_rank(centred) == 2:
            torch.testing.assert_close(centred @ tensor(found["W"]).T, z, rtol=1e-9, atol=1e-9)
        if torch.linalg.matrix_rank(centred) == 2:  # then only one W maps one onto the other
            W = torch.linalg.lstsq(centred, z).solution.T
            torch.testing.assert_close(tensor(found["W"]), W, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(tensor(found["covariance"]), torch.cov(x.T), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(tensor(found["after"]), torch.cov(z.T), rtol=1e-9, atol=1e-9)
    return state


def test_starts_with_the_figures_cloud(page):
    state = compared(page)
    assert state["settings"] == {"method": "cholesky", "steps": 5, "sliceSize": 8, "eps": 0, "slice": 1}
    assert len(state["points"]) == 24 and not any(found["refused"] for found in state["slices"])
    shown = [float(cell.replace("−", "-")) for cell in page.locator(".explorer td").all_inner_texts()]
    first = state["slices"][0]
    wanted = tensor([first["covariance"], first["W"], first["after"]]).flatten()
    torch.testing.assert_close(tensor(shown), wanted, rtol=0, atol=6e-4)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_the_packages(page, method):
    choose(page, method)
    for size, eps in itertools.product((2, 3, 5, 8, 24), (0, 0.001, 0.25, 1)):
        choose(page, size=size, eps=eps)
        state = compared(page)
        assert (state["settings"]["sliceSize"], state["settings"]["eps"]) == (size, eps)
        assert all(bool(found["refused"]) == (size == 2) for found in state["slices"])
        if eps == 0 and size > 2 and method != "newton-schulz":
            for found in state["slices"]:
                torch.testing.assert_close(tensor(found["after"]), torch.eye(2).double(), rtol=0, atol=1e-9)


def test_newton_schulz_steps_lead_to_zca(page):
    choose(page, "zca")
    zca = tensor(compared(page)["slices"][0]["W"])
    choose(page, "newton-schulz")
    away = []
    for steps in (1, 3, 7, 15):
        choose(page, steps=steps)
        away.append((tensor(compared(page)["slices"][0]["W"]) - zca).norm())
    assert away == sorted(away, reverse=True) and away[-1] < 1e-9 < away[0]


@pytest.mark.parametrize("method", METHODS)
def test_drags_by_mouse(page, method):
    choose(page, method)
    unit = page.locator(".explorer .frame").first.bounding_box()["width"] / 10  # pixels
    before = tensor(compared(page)["points"])

    drag(page, handle(page, "Centre"), -2 * unit, unit)
    moved = tensor(compared(page)["points"])
    torch.testing.assert_close(moved - before, tensor([-2.0, -1.0]).expand(24, 2), rtol=0, atol=0.03)

    drag(page, handle(page, "Stretch"), -1.5 * unit, -2.5 * unit)
    turned = tensor(compared(page)["points"])
    assert (turned - moved).abs().max() > 1
    drag(page, handle(page, "Width"), -unit, 0.4 * unit)
    wider = tensor(compared(page)["points"])
    assert (
        torch.linalg.svdvals(wider - wider.mean(0))[1]
        > 1.2 * torch.linalg.svdvals(turned - turned.mean(0))[1]
    )

    drag(page, handle(page, "Point 12 "), 1.5 * unit, -2 * unit)
    pulled = tensor(compared(page)["points"]) - wider
    torch.testing.assert_close(pulled[11], tensor([1.5, 2.0]), rtol=0, atol=0.03)
    assert pulled[:11].abs().max() == pulled[12:].abs().max() == 0, "the others stay"
    assert page.evaluate(STATE)["settings"]["slice"] == 2, "the numbers are those of its slice"


def test_moves_by_keys(page):
    before = tensor(compared(page)["points"])
    handle(page, "Centre").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    moved = tensor(compared(page)["points"])
    torch.testing.assert_close(moved - before, tensor([0.1, -0.5]).expand(24, 2), rtol=0, atol=1e-9)
    for name in ("Stretch", "Width"):
        handle(page, name).focus()
        page.keyboard.press("Shift+ArrowUp")
        now = tensor(compared(page)["points"])
        assert (now - moved).abs().max() > 0.05, name
        moved = now

    handle(page, "Point 1 ").focus()
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowLeft")
    pulled = tensor(compared(page)["points"]) - moved
    assert pulled[1, 0] == pytest.approx(-0.1, abs=0.006) and pulled[0].abs().max() == 0
    assert "Point 2 " in page.evaluate("document.activeElement.getAttribute('aria-label')")

    page.get_by_label("Points a slice, slider").focus()
    page.keyboard.press("ArrowRight")
    assert compared(page)["settings"]["sliceSize"] == 9
    assert page.input_value("#explorer-size") == "9"
    page.get_by_text("Start again").press("Enter")
    assert torch.equal(tensor(compared(page)["points"]), before)


def test_everything_is_reached_by_tab_and_shows_it(page):
    choose(page, "newton-schulz")
    wanted = (
        page.locator(".explorer :is(input:not([type=radio]), button, [role=button][tabindex='0'])").count()
        + 1
    )
    page.locator(".explorer input[type=radio]:checked").focus()
    reached = 0
    while page.evaluate("document.activeElement.closest('.explorer') !== null"):
        reached += 1
        shown = page.evaluate("""() => {
            const style = getComputedStyle(document.activeElement);
            const mark = document.activeElement.querySelector(".target");
            return mark ? getComputedStyle(mark).strokeWidth : style.outlineWidth;
        }""")
        assert float(shown.removesuffix("px")) >= 2, f"element {reached} shows no focus"
        page.keyboard.press("Tab")
    assert reached == wanted


def test_says_what_is_singular(page):
    status = page.get_by_role("status")
    status.filter(has_text="3 slices of 8 points").wait_for()
    choose(page, width=0)
    for method in ("cholesky", "zca", "pca"):
        choose(page, method)
        assert all("line" in found["refused"] for found in compared(page)["slices"])
        summary = page.locator(".explorer .summary").inner_text()
        assert "Singular: every slice" in summary, "what is to be seen follows at once"
        status.filter(has_text="Singular: every slice").wait_for()  # and is heard after a drag
        assert "singular" in page.locator(".explorer .message").inner_text()
        assert "NaN" not in page.locator(".explorer").inner_text()
    choose(page, "newton-schulz", steps=15)
    assert not any(found["refused"] for found in compared(page)["slices"])
    choose(page, "cholesky", eps=0.01)
    assert not any(found["refused"] for found in compared(page)["slices"])
    choose(page, size=2)
    assert all("at least 3" in found["refused"] for found in compared(page)["slices"])
    status.filter(has_text="at least 3").wait_for()


def test_a_line_along_a_dimension_is_singular_too(page):
    """The mean of equal numbers is rounded; what remains must not pass for a spread."""
    choose(page, width=0, angle=0, centreY=0.1, size=24)
    for method in ("cholesky", "zca", "pca"):
        choose(page, method)
        assert all(found["refused"] for found in compared(page)["slices"]), method


def test_left_over_points_are_named(page):
    choose(page, size=7)
    assert len(compared(page)["slices"]) == 3
    page.get_by_role("status").filter(has_text="3 left over").wait_for()
    choose(page, slice=3, size=12)
    assert compared(page)["settings"]["slice"] == 2, "there is no third slice any more"


def test_numbers_out_of_range_are_brought_back(page):
    page.fill("#explorer-size", "99")
    assert compared(page)["settings"]["sliceSize"] == 8, "not while it is being typed"
    page.press("#explorer-size", "Tab")
    assert compared(page)["settings"]["sliceSize"] == 24 and page.input_value("#explorer-size") == "24"
    page.fill("#explorer-eps", "")
    page.press("#explorer-eps", "Tab")
    assert compared(page)["settings"]["eps"] == 0 and page.input_value("#explorer-eps") == "0"


def test_panels_stand_side_by_side_and_stack_when_narrow(page):
    for width, beside in ((1280, True), (390, False)):
        page.set_viewport_size({"width": width, "height": 900})
        first, second = (panel.bounding_box() for panel in page.locator(".explorer .panels svg").all())
        assert (abs(first["y"] - second["y"]) < 1) == beside
        assert max(first["x"] + first["width"], second["x"] + second["width"]) <= width


def test_controls_and_both_panels_are_on_one_screen(page):
    """What is changed most, the clouds and the sentence about them; the theme's bar covers the top."""
    page.evaluate("scrollTo(0, document.querySelector('#whitening-explorer').getBoundingClientRect().top)")
    first = page.locator(".explorer .above").bounding_box()
    last = page.locator(".explorer .summary").bounding_box()
    bar = page.locator(".bd-header-article").bounding_box()["height"]
    assert last["y"] + last["height"] - first["y"] < 900 - bar
    for label in page.locator(".explorer .above .field label").all():
        assert label.bounding_box()["height"] < 30, "a label on one line"
        assert label.evaluate("(one) => one.scrollWidth <= one.clientWidth"), label.inner_text()


def test_what_is_refused_is_told_beside_the_axis_on_a_ground_of_its_own(page):
    choose(page, width=0)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        message = page.locator(".explorer .message")
        box, frame = message.bounding_box(), page.locator(".explorer .frame").nth(1).bounding_box()
        assert box["x"] > frame["x"] and box["x"] + box["width"] < frame["x"] + frame["width"]
        assert box["y"] > frame["y"] and box["y"] + box["height"] < frame["y"] + frame["height"]
        ground = message.evaluate("(one) => getComputedStyle(one).backgroundColor")
        assert not ground.startswith("rgba(0, 0, 0, 0"), "lines of the grid run through its words"


def test_matrices_stand_in_brackets(page):
    for table in page.locator(".explorer table").all():
        drawn = table.evaluate("(one) => getComputedStyle(one).backgroundImage")
        assert drawn.count("linear-gradient") == 4, "a hook at each end of two bars"
        assert table.evaluate("(one) => getComputedStyle(one).borderLeftWidth") == "2px"


def test_axes_and_handles_have_words_within_the_picture(page):
    for panel in page.locator(".explorer .panels svg").all():
        words = panel.locator(".scale text").all_text_contents()
        assert words == ["−4", "−4", "−2", "−2", "0", "0", "2", "2", "4", "4", "dimension 1", "dimension 2"]
    for centre, angle in ((-2, 180), (2, 0), (2, 90), (-2, -90)):
        choose(page, centreX=centre, centreY=centre, angle=angle, length=1.5, width=0.5)
        frame = page.locator(".explorer .frame").first.bounding_box()
        for word in ("move", "stretch, turn", "width"):
            box = page.locator(".explorer .words text").get_by_text(word, exact=True).bounding_box()
            assert box["x"] >= frame["x"] and box["y"] >= frame["y"] - 1, word
            assert box["x"] + box["width"] <= frame["x"] + frame["width"], word
            assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1, word


def test_without_scripts_there_is_a_picture(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/notebooks/03_whitening.html")
    assert "book's site" in page.locator("#whitening-explorer").inner_text()
    picture = page.locator("#fig-whitening-explorer img")
    assert picture.is_visible() and "Cholesky" in picture.get_attribute("alt")
    context.close()


def test_no_other_page_loads_it(browser):
    pages = [path for path in SITE.rglob("*.html") if "whiten2d.js" in path.read_text(encoding="utf-8")]
    assert [path.name for path in pages] == ["03_whitening.html"]
