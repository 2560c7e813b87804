"""Every page of the site: it loads, asks nobody else for anything, and all its links lead somewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from chromium import Chromium

NARROW, WIDE = 360, 1400  # CSS pixels
CHIEF = ("index.html", "play.html", "README.html", "chapters/03_windowing.html", "api/flashlite.engine.window.html",
         "exercises/README.html", "chapters/GLOSSARY.html", "results/index.html", "search.html")  # fmt: skip


class Reader(HTMLParser):
    """What a page links to and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given]


@pytest.fixture(scope="module")
def read(site: Path) -> dict[Path, Reader]:
    return {path: Reader(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_links_and_anchors_hold(site: Path, read: dict[Path, Reader]) -> None:
    lost, seen = [], 0
    for path, page in read.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            seen += 1
            if not target.is_file():
                lost.append(f"{path.relative_to(site)}: {link}: there is no such file")
            elif parts.fragment and target in read and unquote(parts.fragment) not in read[target].anchors:
                lost.append(f"{path.relative_to(site)}: {link}: there is no such place")
    assert lost == []
    assert seen > 10_000


def test_there_is_a_page_for_everything(site: Path, read: dict[Path, Reader]) -> None:
    names = {path.relative_to(site).as_posix() for path in read}
    root = Path(__file__).parents[2]
    chapters = {f"chapters/{path.stem}.html" for path in (root / "chapters").glob("*.ipynb")}
    modules = [p.relative_to(root) for p in (root / "flashlite").rglob("*.py") if not p.name.startswith("__")]
    reference = {f"api/{'.'.join(path.with_suffix('').parts)}.html" for path in modules}
    assert names >= chapters | reference | {f"source/{path.as_posix()}.html" for path in modules} | set(CHIEF)


def test_every_page_loads_and_is_not_wider_than_a_phone(
    site: Path, read: dict[Path, Reader], browser: Chromium
) -> None:
    browser.look(NARROW, 740, dark=True)
    wrong = {path.relative_to(site).as_posix(): problems(browser, path) for path in read}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize("name", CHIEF)
def test_a_chief_page_loads_on_a_wide_screen(name: str, site: Path, browser: Chromium) -> None:
    browser.look(WIDE)
    assert problems(browser, site / name) == []


def problems(browser: Chromium, path: Path) -> list[str]:
    """What is wrong with a page as it is shown now."""
    browser.open(path.as_uri())
    foreign = [address for address in browser.requests if not address.startswith(("file:", "data:"))]
    beyond = browser.run("document.documentElement.scrollWidth - innerWidth")
    broken = browser.run("[...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)")
    return [
        *browser.problems,
        *(f"asks for {address}" for address in foreign),
        *(f"shows no picture {source}" for source in broken),
        *([f"is {beyond} pixels too wide"] if beyond > 0 else []),
    ]


def test_search_finds_bundle(site: Path, browser: Chromium) -> None:
    browser.look(WIDE)
    browser.open(f"{(site / 'search.html').as_uri()}?q=bundle")
    browser.wait("/found|matching/.test(document.querySelector('.search-summary')?.textContent ?? '')")
    found = browser.run("[...document.querySelectorAll('.search li a')].map((a) => a.getAttribute('href'))")
    for page in ("chapters/04_row_column_bundling.html", "chapters/GLOSSARY.html", "api/flashlite.storage.bundle.html"):
        assert any(link.split("?")[0].split("#")[0] == page for link in found), page
    assert browser.problems == []


@pytest.mark.parametrize("name", ["index.html", "play.html", "chapters/03_windowing.html"])
def test_light_and_dark_follow_the_reader(name: str, site: Path, browser: Chromium) -> None:
    for dark in (False, True):
        browser.look(WIDE, dark=dark)
        browser.open((site / name).as_uri())
        assert (browser.run(f"{BRIGHTNESS}(getComputedStyle(document.body).backgroundColor)") < 0.2) == dark
        assert contrast(browser, "article h1", "body") > 7
        assert contrast(browser, "article p", "body") > 7
        shown = browser.run("[...document.querySelectorAll('img')].filter((i) => i.offsetWidth).map((i) => i.src)")
        assert all(("-dark" in source) == dark for source in shown if "system-" in source)
    browser.run("document.body.dataset.theme = 'light'")  # what the button at the top does
    assert browser.run(f"{BRIGHTNESS}(getComputedStyle(document.body).backgroundColor)") > 0.8


BRIGHTNESS = """((colour) => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
})"""


def contrast(browser: Chromium, text: str, ground: str) -> float:
    """How far a text's colour stands off from its ground, as accessibility guidelines count it. Both: CSS selectors."""
    colours = (f"getComputedStyle(document.querySelector('{text}')).color",
               f"getComputedStyle(document.querySelector('{ground}')).backgroundColor")  # fmt: skip
    low, high = sorted(float(browser.run(f"{BRIGHTNESS}({colour})")) for colour in colours)
    return (high + 0.05) / (low + 0.05)
