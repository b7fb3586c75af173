# make demo runs the main job, make test passes the tests; both make .venv and install on first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test pairs lint fmt clean

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

demo: install
	$(BIN)/yolo-mkd demo

test: install
	$(BIN)/python -m pytest

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
.PHONY: docs
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
