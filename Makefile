# make check before each commit, make test for everything, make demo for a look; each makes .venv on first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo check test ci pairs lint fmt docs clean

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet -e ".[dev]"
	touch $@

demo: install
	$(BIN)/yolo-mkd demo

# One thread a process: two processes share the cores
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Lint, types and the fast tests, in under a minute
check: lint
	$(PYTEST) -m "not slow and not pairs"

# All tests, also those that train, export or start processes
test: install
	$(PYTEST)

ci: lint test docs

pairs: install
	$(BIN)/python -m pytest -m pairs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation, as a site in site/ that needs no network
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
