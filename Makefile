# make check before each commit, make test for everything, make demo for a look; each makes .venv on first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo check test ci pairs matrix lint fmt docs clean

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

# Lint, types and the fast tests
check: lint
	$(PYTEST) -m "not slow and not pairs"

# All tests, also those that train, export or start processes
test: install
	$(PYTEST)

ci: lint test docs

pairs: install
	$(BIN)/python -m pytest -m pairs

# The fast tests in environments of their own: the oldest packages on the oldest Python, then the newest packages on
# each Python that is there (PYTHONS= takes names or paths). Each is removed once its tests have passed: one takes up to
# 8 GB, where pip's torch is that for CUDA. OLDEST is what pyproject.toml allows.
OLDEST := torch==2.6.0 torchvision==0.21.0 ultralytics==8.4.190 onnx==1.15.0 onnxruntime==1.18.0 onnxslim==0.1.82 \
	jinja2==3.1.0 filelock==3.12.0 pydantic==2.5.0 scipy==1.11.1 tabulate==0.9.0
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
MATRIX := .venv/matrix

matrix:
	set -e; for setting in "oldest $(firstword $(PYTHONS))" $(PYTHONS:%="newest %"); do \
		set -- $$setting; place=$(MATRIX)-$$1-$${2##*/}; \
		$$2 --version > /dev/null 2>&1 || { echo "$$2 is not installed: skipped"; continue; }; \
		rm -rf $$place; $$2 -m venv $$place; pins=; test $$1 = newest || pins="$(OLDEST)"; \
		PYTHONWARNINGS=ignore $$place/bin/pip install --quiet -e . pytest hypothesis types-PyYAML $$pins; \
		OMP_NUM_THREADS=1 $$place/bin/python -m pytest -m "not slow and not pairs"; \
		rm -rf $$place; \
	done

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
