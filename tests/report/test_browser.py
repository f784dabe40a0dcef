"""The pages in a real browser, on a phone's width and on a desk's."""

import shutil
from pathlib import Path

import pytest

from slimrank.report import write_report

sync_api = pytest.importorskip("playwright.sync_api")
INSTALLED = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=INSTALLED, args=["--no-sandbox"])
        except sync_api.Error:
            pytest.skip("no Chromium is installed")
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(run_folder, comparison_folder, measured):
    run = write_report(run_folder, run_folder.parent / "page.html", evaluation=measured[0], bench=measured[1])
    return {"run": run, "comparison": comparison_folder / "report.html"}


def opened(browser, file: Path, width: int):
    """The page once every chart is drawn, what its console said, and what it asked the network for."""
    page, said, asked = browser.new_page(viewport={"width": width, "height": 800}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("document.documentElement.dataset.ready", timeout=60_000)
    return page, said, asked


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize(("name", "count"), [("run", 5), ("comparison", 3)])
def test_every_chart_is_drawn_within_the_width_and_nothing_complains(browser, pages, name, count, width):
    page, said, asked = opened(browser, pages[name], width)
    assert said == [] and asked == [pages[name].as_uri()]
    assert page.locator(".chart svg.marks").count() == count
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [chart.bounding_box() for chart in page.locator(".chart svg.marks").all()]
    assert all(box["width"] > 0.8 * min(width, 1080) - 40 and box["x"] + box["width"] <= width for box in boxes)
    assert all(heading.is_visible() for heading in page.locator("h1, h2").all())
    page.close()


def test_a_cell_for_every_linear_and_a_choice_that_changes_the_chart(browser, pages):
    page, _, _ = opened(browser, pages["run"], 1400)
    assert page.locator("#map-kept svg .mark-rect.role-mark path").count() == 14  # 2 blocks of 7
    assert page.locator("#spectra-chart svg .mark-line path").count() == 2
    before = page.locator("#spectra-chart svg .mark-line path").first.get_attribute("d")
    page.locator("#spectra-chart select").select_option("down_proj")
    page.wait_for_timeout(300)
    assert page.locator("#spectra-chart svg .mark-line path").first.get_attribute("d") != before
    assert page.get_by_text("It waits for memory.").is_visible()
    page.close()


@pytest.mark.parametrize("width", [360, 1400])
def test_a_mixtures_page_has_a_cell_for_every_expert(browser, mixture_folder, width):
    file = write_report(mixture_folder, mixture_folder.parent / "page.html")
    page, said, asked = opened(browser, file, width)
    assert said == [] and asked == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("experts-kept", "experts-tokens"):
        assert page.locator(f"#{name} svg .mark-rect.role-mark path").count() == 2 * 4
    page.close()


def test_it_opens_within_a_second(browser, pages):
    """The best of five: other tests run beside this one."""
    for name in pages:
        times = []
        for _ in range(5):
            page, _, _ = opened(browser, pages[name], 360)
            times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
            page.close()
        assert min(times) < 1000, times
