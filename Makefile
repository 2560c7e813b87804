# make bench   run the whole ladder on opt-mini, from this machine's drive
# make test    run the tests, on all cores
# make slow    the tests that `make test` leaves out: whole benchmarks, every "run yours" cell, the notebooks from end to end
# make chapters of these, the notebooks alone; changes none of them
# make soak    what takes too long for the tests: faults by many seeds, long texts, many models
# make lint    style, types, links, and whether exercises and solutions are what the engine's code gives
# make site    the course and the library as pages, in .flashlite/site/html, which open without a server and without a network
# make site-test   build them, and look at every page with a headless Chromium
PYTHON ?= python3
BIN := .venv/bin

.PHONY: bench test slow chapters soak lint site site-test clean

bench: .venv/ready
	$(BIN)/flashlite bench opt-mini --json .flashlite/bench.json --plot .flashlite/bench.png

test: .venv/ready
	$(BIN)/python -m pytest -n auto --dist worksteal

soak: .venv/ready
	$(BIN)/python -m pytest tests/soak.py

slow: .venv/ready
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow

chapters: .venv/ready
	$(BIN)/python -m pytest -n auto -m slow tests/test_chapters.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/sync.py --check
	$(BIN)/python tools/check_links.py

site: .venv/site
	$(BIN)/python tools/site/build_site.py .flashlite/site

site-test: site
	FLASHLITE_SITE=.flashlite/site/html $(BIN)/python -m pytest tests/site

.venv/ready: pyproject.toml constraints.txt tools/set_up.py
	@command -v $(firstword $(PYTHON)) >/dev/null || { echo "make: there is no $(firstword $(PYTHON)): install \
	Python 3.10 or newer, and write make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) tools/set_up.py .venv

.venv/site: .venv/ready
	@$(PYTHON) tools/set_up.py .venv site

clean:
	rm -rf .venv .flashlite
