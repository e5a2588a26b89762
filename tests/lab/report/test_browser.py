"""The page in a browser, used as its readers use it: by pointer, keyboard, phone, without script.

Every test also sees that nothing was written to the console and nothing was asked of a network.
"""

import re
import shutil

import pytest

from tdquant.lab.report import report
from tests.lab.report.made_up import write_everything

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = write_everything(tmp_path_factory.mktemp("browser"))
    return report([folder / "studies", folder / "runs"], folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page in a fresh context; afterwards it must have been quiet."""
    contexts, said = [], []

    def open_page(**settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: said.append(asked.url)
                if not asked.url.startswith(("file:", "data:")) else None)  # fmt: skip
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def column(table, index):
    return table.locator("tbody").first.locator(f"tr:not(.group) > :nth-child({index})")


def test_a_click_sorts_rows_within_their_group(visit):
    table = visit().locator("#study-1 ~ .tabular table.sortable")
    head = table.locator("thead th").nth(2)
    button = head.get_by_role("button", name="Frechet")
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    shown = [float(text.split()[0].split("(")[0]) for text in column(table, 3).locator(
        "xpath=./b | ./self::*[not(b)]/text()[1]/..").all_inner_texts()]  # fmt: skip
    assert len(shown) == 4
    assert shown == sorted(shown)
    button.press("Enter")  # by keyboard, the other way
    assert head.get_attribute("aria-sort") == "descending"
    names = column(table, 1).all_inner_texts()
    assert (names[0], names[-1]) == ("PACT", "float")
    table.get_by_role("button", name="Method").click()
    assert head.get_attribute("aria-sort") is None
    assert column(table, 1).all_inner_texts() == ["float", "LSQ", "PACT", "TDQ"]
    groups = table.locator("tr.group").all_inner_texts()
    assert groups == ["cats-ddpm · W8A8", "cats-ddpm · W4A8", "cats-ddpm · W4A4"]


def test_rows_without_a_value_stay_last(visit):
    page = visit()
    head = page.locator("#runs ~ .tabular table.sortable thead th", has_text="MSE")
    table = page.locator("#runs ~ .tabular table.sortable")
    for _ in range(2):
        head.get_by_role("button").click()
        assert column(table, 1).all_inner_texts()[-1] == "float"


def test_the_slider_moves_all_rows_at_once(visit):
    figure = visit().locator("figure.samples").first
    slider = figure.get_by_label("Sampler steps")
    assert figure.locator(".strip img:visible").count() == 3
    slider.focus()
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "sampler steps: 50"
    assert figure.locator("output").inner_text() == "sampler steps: 50"
    seen = [img.get_attribute("alt") for img in figure.locator(".strip img:visible").all()]
    assert seen == [f"Samples of {name}, sampler steps: 50"
                    for name in ("float", "TDQ, W4A4", "static, W4A4")]  # fmt: skip
    slider.press("End")
    assert figure.locator(".strip img:visible").count() == 2
    assert figure.get_by_text("not sampled").is_visible()


def test_models_beside_each_other_and_one_at_a_time(visit):
    figure = visit().locator("figure.compare")
    assert figure.locator("img:visible").count() == 5
    assert (
        figure.get_by_label("Model").count() == 0 or not figure.get_by_label("Model").is_visible()
    )
    figure.get_by_role("button", name="One at a time").click()
    assert figure.locator("img:visible").count() == 1
    slider = figure.get_by_label("Model")
    slider.focus()
    slider.press("End")
    assert figure.locator("figcaption:visible").first.inner_text() == "W4A4 temporal"
    figure.get_by_role("button", name="One at a time").press("Space")
    assert figure.locator("img:visible").count() == 5


def test_the_theme_is_toggled_and_remembered(visit):
    page = visit(color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Dark theme").click()
    dark = page.evaluate(paper)
    assert dark != light
    assert page.locator(".cells:visible").first.get_attribute("class") == "cells only-dark"
    page.reload()
    assert page.evaluate(paper) == dark
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(paper) == light
    assert visit(color_scheme="dark").evaluate(paper) == dark


def test_a_command_is_copied(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    button = page.get_by_role("button", name="Copy the command of LSQ").first
    button.click()
    page.wait_for_function("document.getElementById('said').textContent === 'Command copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "python studies/a-qat.py --only W8A8-lsq"
    assert button.inner_text() == "Copied"


def test_a_command_is_copied_where_the_clipboard_is_denied(visit):
    page = visit()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject('denied'); }")
    page.evaluate("() => { document.execCommand = (name) => { window.asked = [name, "
                  "document.activeElement.value]; return true; } }")  # fmt: skip
    page.get_by_role("button", name="Copy the command of LSQ").first.click()
    page.wait_for_function("window.asked")
    assert page.evaluate("window.asked") == ["copy", "python studies/a-qat.py --only W8A8-lsq"]


def test_the_filter_leaves_the_layers_that_fit(visit):
    layers = visit().locator(".layers").first
    box = layers.get_by_label("Filter layers")
    box.fill("conv1 BLOCKS.1")
    rows = layers.locator("table.sortable tbody tr:visible")
    assert rows.count() == 1
    assert "down_blocks.1.resnets.0.conv1" in rows.first.inner_text()
    assert layers.locator(".filter output").inner_text() == "1 of 40 layers"
    box.fill("no such layer")
    assert rows.count() == 0
    box.fill("")
    assert rows.count() == 40


def test_a_plot_is_read_by_pointer_and_by_keyboard(visit):
    plot = visit().locator("figure.plot").first
    output, reader = plot.locator(".readout"), plot.locator("input.reader")
    box = plot.locator(".drawing svg").bounding_box()
    plot.locator(".drawing svg").hover(position={"x": box["width"] - 4, "y": 60})
    assert "sampler steps 100" in output.inner_text()
    assert "TDQ: 24 (22.32–25.68)" in output.inner_text()
    reader.focus()
    reader.press("Home")
    reader.press("ArrowRight")
    assert "sampler steps 10" in output.inner_text()
    assert reader.get_attribute("aria-valuetext").startswith("sampler steps 10; float: 22 (")
    plot.locator("summary").click()
    assert plot.locator("details tbody tr").count() == 5


def test_the_heat_map_is_read_and_chooses_layers(visit):
    layers = visit().locator(".layers").first
    heat, output = layers.locator(".heat"), layers.locator(".heat .readout")
    legend = layers.locator(".curves .legend li:visible")
    assert legend.count() == 4
    row = heat.get_by_label("Layer of the heat map")
    row.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        row.press(key)
    assert "down_blocks.0.attentions.0.to_q" in output.inner_text()
    assert "timestep 26: s = 0.0" in output.inner_text()
    assert "timestep 26" in row.get_attribute("aria-valuetext")
    row.press("Home")
    before = legend.all_inner_texts()
    assert "down_blocks.0.resnets.0.conv1" not in before
    row.press("Enter")
    assert legend.all_inner_texts() == [*before, "down_blocks.0.resnets.0.conv1"]
    assert layers.locator(".curves .drawing .line:not(.off)").count() == 5
    tick = layers.get_by_label("down_blocks.0.resnets.0.conv1", exact=True)
    assert tick.is_checked()
    tick.uncheck()
    assert legend.all_inner_texts() == before
    field = heat.locator(".field")
    field.click(position={"x": 5, "y": 3})
    assert "timestep 0" in output.inner_text()
    assert tick.is_checked()
    reader = layers.locator(".curves input.reader")
    reader.focus()
    reader.press("End")
    assert "down_blocks.0.resnets.0.conv1: " in layers.locator(".curves .readout").inner_text()
    assert layers.locator(".curves details thead th").count() == 6


def test_drawn_curves_lie_where_their_axis_says(visit):
    layers = visit().locator(".layers").first
    for index in layers.locator("input[data-layer]").evaluate_all(
        "ticks => ticks.filter(tick => tick.checked).map(tick => tick.dataset.layer)"
    ):
        layers.locator(f"input[data-layer='{index}']").uncheck()
    assert layers.locator(".curves .drawing .line:not(.off)").count() == 0
    layers.locator("input[data-layer]").first.check()
    inside = layers.evaluate(
        """root => [...root.querySelectorAll('.drawing .line:not(.off) path')].every(path => {
          const box = path.getBBox();
          return box.y >= 33 && box.y + box.height <= 257 && box.x >= 51 && box.width > 400;
        })"""
    )
    assert inside


@pytest.mark.parametrize("width", [320, 375, 768, 1280, 2200])
def test_nothing_is_wider_than_the_screen(visit, width):
    page = visit(viewport={"width": width, "height": 800})
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_has_a_name(visit):
    page = visit()
    problems = page.evaluate(
        """() => {
      const found = [];
      const text = (e) => (e.getAttribute('aria-label') || e.textContent || '').trim();
      const label = (e) => e.labels && e.labels.length ? e.labels[0].textContent.trim() : '';
      for (const e of document.querySelectorAll('input, select, textarea'))
        if (!(e.getAttribute('aria-label') || label(e))) found.push(e.outerHTML);
      for (const e of document.querySelectorAll('button, a, summary, th'))
        if (!text(e)) found.push(e.outerHTML);
      for (const e of document.querySelectorAll('img'))
        if (!e.hasAttribute('alt')) found.push('img');
      for (const e of document.querySelectorAll('svg'))
        if (!e.getAttribute('aria-label') && e.getAttribute('aria-hidden') !== 'true')
          found.push(e.outerHTML);
      for (const e of document.querySelectorAll('table')) if (!e.caption) found.push('table');
      for (const e of document.querySelectorAll('[role=region]'))
        if (!text(e)) found.push(e.outerHTML);
      for (const name of ['header', 'nav', 'main', 'footer'])
        if (document.querySelectorAll('body > ' + name).length !== 1) found.push(name);
      if (!document.documentElement.lang || !document.title) found.push('document');
      return found;
    }"""
    )
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(visit, scheme):
    """WCAG 2: a contrast of 4.5 for text."""
    low = visit(color_scheme=scheme).evaluate(
        """() => {
      const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
      const light = (colour) => numbers(colour).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = (e) => {
        for (; e; e = e.parentElement) {
          const colour = getComputedStyle(e).backgroundColor;
          if (numbers(colour)[3] !== 0) return colour;
        }
        return 'rgb(255, 255, 255)';
      };
      const found = new Set();
      for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.checkVisibility() || ['SCRIPT', 'STYLE'].includes(e.tagName)) continue;
        const style = getComputedStyle(e);
        const front = e.closest('svg') ? style.fill : style.color;
        const [a, b] = [light(front), light(ground(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) found.add(`${e.tagName}.${e.className} ${front}`);
      }
      return [...found];
    }"""
    )
    assert low == []


def test_the_page_is_whole_without_its_script(visit):
    page = visit(java_script_enabled=False)
    strips = page.locator("figure.samples .strip")
    assert strips.locator("img:visible").count() == 11  # three models of four values, less one
    for strip in strips.all():
        assert strip.locator(".value:visible").all_inner_texts() == [
            f"sampler steps: {steps}" for steps in (100, 50, 10, 5)
        ]
    assert page.get_by_text("not sampled").is_visible()
    assert page.locator("figure.compare img:visible").count() == 5
    assert page.locator("table.sortable:visible").count() >= 5
    for dead in ("button", "input[type=checkbox]", "input[type=search]", "input[type=range]",
                 ".slider", ".readout"):  # fmt: skip
        assert page.locator(f"{dead}:visible").count() == 0
    page.locator("summary", has_text="Commands of these rows").first.click()
    assert page.get_by_text("python studies/a-qat.py --only W8A8-lsq").is_visible()


def test_what_a_slider_hides_is_never_seen_before(visit):
    """The style sheet hides it while the page is read, the script once it has a slider."""
    page = visit()
    strips = page.locator("figure.samples .strip")
    assert strips.locator("img:visible").count() == 3
    assert strips.locator(".value:visible").count() == 0
    page.evaluate("document.documentElement.dataset.script = 'loading'")
    page.evaluate("for (const e of document.querySelectorAll('.strip [data-value]'))"
                  "e.hidden = false")  # fmt: skip
    assert strips.locator("img:visible").count() == 3


def test_a_readout_is_said_once(visit):
    page = visit()
    assert page.locator(".readout").count() >= 6
    assert page.locator(".readout:not([aria-hidden=true]), output.readout").count() == 0
    for reader in page.locator("input.reader").all():
        assert "Arrow keys" in reader.get_attribute("aria-label")
    assert "press arrow keys" in page.locator("figure.plot .readout").first.inner_text()
    heat = page.locator(".heat").first
    assert "Enter draws" in heat.locator(".readout").inner_text()
    assert "Enter draws" in heat.get_by_label("Layer of the heat map").get_attribute("aria-label")


def test_the_neutral_line_is_grey_in_its_readout_too(visit):
    page = visit()
    page.evaluate("tell(document.querySelector('.readout'), 'x', [[-1, 'float: 1'], [7, 'a: 2']])")
    colour = "e => getComputedStyle(e, '::before').backgroundColor"
    spans = page.locator(".readout").first.locator("span")
    red, green, blue = (int(v) for v in re.findall(r"\d+", spans.nth(0).evaluate(colour))[:3])
    assert max(red, green, blue) - min(red, green, blue) < 20
    assert spans.nth(1).evaluate(colour) != spans.nth(0).evaluate(colour)


def test_chosen_curves_keep_marks_to_tell_them_by(visit):
    layers = visit().locator(".layers").first
    marks = "uses => new Set(uses.map(use => use.getAttribute('href'))).size"
    places = (".curves .drawing .line:not(.off) use", ".curves .legend li:not([hidden]) use")
    for place in places:
        assert layers.locator(place).evaluate_all(marks) == 4
    layers.locator("input[data-layer]:not(:checked)").first.check()
    for place in places:
        assert layers.locator(place).evaluate_all(marks) == 5
    seen = "use => { const box = use.getBBox(); return box.width > 5 && box.height > 2; }"
    assert layers.locator(places[0]).first.evaluate(seen)


def test_paper_has_small_tables_and_nothing_to_press(visit):
    page = visit()
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    page.emulate_media(media="print")
    style = "e => { const s = getComputedStyle(e); return [s.fontSize, s.position]; }"
    assert page.locator(".tall table").first.evaluate(style)[0] == "10px"  # 7.5pt
    assert page.locator(".tall thead th").first.evaluate(style)[1] == "static"
    for dead in (".slider", ".readout", ".filter", ".copy", "nav"):
        assert page.locator(f"{dead}:visible").count() == 0
    # The slider that named the strips is gone.
    named = page.locator("figure.samples .strip .value:visible").all_inner_texts()
    assert named == ["sampler steps: 100"] * 3


def test_the_keyboard_reaches_the_content_first(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "To the content"
    assert page.locator(":focus").is_visible()
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Dark theme"
