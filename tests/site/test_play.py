"""The interactive page: its figures are the library's for the same trace, and hand and keyboard can use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import play_trace
import pytest
import torch
from chromium import Chromium
from test_pages import contrast

from flashlite.bench.replay import replay_belady, replay_lru, replay_window
from flashlite.engine.pool import Pool
from flashlite.engine.window import Window
from flashlite.storage.bundle import FFNShape

RECORDED = play_trace.read()
LAYERS = RECORDED["layers"]
NEURONS, RECORD = RECORDED["neurons"], RECORDED["recordBytes"]
MOST = 1024  # rows of the slider
SETTINGS = [  # layer, k, rows above the fewest that a token needs
    (3, 5, 0), (3, 5, 200), (3, 0, 64), (3, 16, 300), (0, 1, 100), (5, 8, 150), (2, 12, None),
]  # fmt: skip


@pytest.fixture
def play(site: Path, browser: Chromium) -> Chromium:
    browser.look(1400, 1000)
    browser.open((site / "play.html").as_uri())
    return browser


def fewest(layer: int) -> int:
    return max(map(len, LAYERS[layer]))


def choose(page: Chromium, layer: int, k: int, rows: int) -> None:
    """Move the controls as a hand would."""
    for name, value, event in (("layer", layer, "change"), ("k", k, "input"), ("rows", rows, "input")):
        page.run(f"(() => {{ const c = document.getElementById('{name}'); c.value = {value};"
                 f" c.dispatchEvent(new Event('{event}')); }})()")  # fmt: skip


def text(page: Chromium, name: str) -> str:
    return str(page.run(f"document.getElementById('{name}').textContent"))


def loads_of(layer: int, k: int, rows: int) -> dict[str, np.ndarray]:
    """What the library says that each policy loads, token by token."""
    trace, window = LAYERS[layer], Window(NEURONS, k, rows)
    return {
        "window": np.array([len(window.step(active).load) for active in trace]),
        "lru": replay_lru(trace, NEURONS, rows).loads,
        "belady": replay_belady(trace, NEURONS, rows).loads,
    }


def told(loads: Sequence[int] | np.ndarray, t: int, needed: int) -> list[str]:
    """The cells of the page's table for these loads, with token t: counted, and put into words."""
    total = int(np.sum(loads)) * RECORD
    return [
        f"{loads[t]} · {loads[t] * RECORD / 1e3:.0f} kB",
        f"{int(np.sum(loads[: t + 1])) * RECORD / 1e6:.2f} MB",
        f"{total / 1e6:.2f} MB",
        f"{total / len(loads) / 1e3:.1f} kB",
        f"{100 * total / (needed * RECORD):.1f} %",
    ]


@pytest.mark.parametrize(("layer", "k", "above"), SETTINGS)
def test_sliders_change_the_figures_to_the_librarys(layer: int, k: int, above: int | None, play: Chromium) -> None:
    rows = MOST if above is None else fewest(layer) + above
    choose(play, layer, k, rows)
    needed = [len(active) for active in LAYERS[layer]]
    expected = {"needed": needed, **loads_of(layer, k, rows)}
    for t in (len(needed) - 1, 0, 57):
        play.run(f"(() => {{ const c = document.getElementById('token'); c.value = {t + 1};"
                 " c.dispatchEvent(new Event('input')); })()")  # fmt: skip
        for name, loads in expected.items():
            cells = [text(play, f"{name}-{cell}") for cell in ("now", "far", "all", "token", "share")]
            assert cells == told(loads, t, sum(needed)), (name, t)
            if name != "needed":
                squares = f"document.querySelectorAll('#pool-{name} rect.read').length"
                assert play.run(squares) == loads[t], "as many squares as neurons were read"
    assert play.problems == []


@pytest.mark.parametrize(("layer", "k", "above"), SETTINGS[:4])
def test_the_squares_are_the_engines_pool(layer: int, k: int, above: int, play: Chromium) -> None:
    rows = fewest(layer) + above
    shown = play.run(f"""(() => {{
        const trace = Policies.decode(flashliteTrace.layers[{layer}]);
        const steps = Policies.slidingWindow(trace, {NEURONS}, {k}, {rows});
        return Policies.rowsAfter(steps, {NEURONS}, {rows}).map((r) => Array.from(r));
    }})()""")
    window = Window(NEURONS, k, rows)
    pool = Pool(rows, FFNShape(NEURONS, 16, 4, 512, 2), torch.float32, torch.zeros(NEURONS))
    for t, active in enumerate(LAYERS[layer]):
        step = window.step(active)
        pool.place(step.load, step.drop)
        held = pool.neurons().tolist()
        assert shown[t] == held + [-1] * (rows - len(held)), f"token {t}"


def test_with_all_the_memory_it_wants_it_is_the_window_of_chapter_3(play: Chromium) -> None:
    choose(play, 3, 4, MOST)
    replay = replay_window(LAYERS[3], NEURONS, 4)
    assert replay.held.max() <= MOST
    assert text(play, "window-all") == f"{replay.loads.sum() * RECORD / 1e6:.2f} MB"


def test_memory_never_goes_below_what_one_token_needs(play: Chromium) -> None:
    for layer in range(len(LAYERS)):
        choose(play, layer, 5, 1)
        assert play.run("Number(document.getElementById('rows').value)") == fewest(layer)
        assert text(play, "rows-value").startswith(f"{fewest(layer)} rows,")


def test_a_keyboard_is_enough(play: Chromium) -> None:
    play.run("document.getElementById('text').focus()")
    last = len(LAYERS[0])
    assert text(play, "token-value") == f"token {last} of {last}"
    play.press("ArrowLeft", "ArrowLeft")
    play.press("ArrowLeft", "ArrowLeft")
    play.press("ArrowRight", "ArrowRight")
    assert text(play, "token-value") == f"token {last - 1} of {last}"
    play.press(" ", "Space")
    play.wait(f"document.getElementById('token-value').textContent === 'token {last} of {last}'")
    play.wait("document.getElementById('play').textContent === 'Play'")
    play.press(" ", "Space")
    play.wait("document.getElementById('token-value').textContent.startsWith('token 3 of')")
    play.press(" ", "Space")
    assert text(play, "play") == "Play"


def test_each_guess_has_one_right_answer_which_is_shown_after_the_guess(play: Chromium) -> None:
    asked = set()
    for _ in range(play.run("GUESSES.length")):
        asked.add(text(play, "guess-ask"))
        assert text(play, "guess-answer") == ""
        play.run("document.querySelector('#guess-options button').click()")
        assert play.run("document.querySelectorAll('#guess-options .right').length") == 1
        assert "%" in text(play, "guess-answer")
        play.run("document.getElementById('guess-next').click()")
    assert len(asked) == play.run("GUESSES.length")
    assert play.problems == []


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_in_light_and_dark_and_on_a_phone(dark: bool, site: Path, browser: Chromium) -> None:
    browser.look(360, 740, dark=dark)
    browser.open((site / "play.html").as_uri())
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    for part in (".lab-ask", ".lab-eyebrow", ".lab-setting output", ".lab-text .now", ".lab figcaption b"):
        assert contrast(browser, part, ".lab-card") >= 4.5, part
    heights = browser.run("[...document.querySelectorAll('.lab button, .lab select')].map((b) => b.offsetHeight)")
    assert min(height for height in heights if height) >= 36, "a finger hits every button"
