# nnicompress: everything a fresh machine with Python 3.11 or newer needs. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
RECIPE ?= taylorfo_resnet
WORKERS ?= 2
SLOW ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
MARKERS := $(if $(SLOW),,-m "not slow")
SOURCES := nnicompress tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help demo test lint type recipes bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## install, then prune, shrink, fine-tune and measure a ResNet-20 (under a minute)
	$(BIN)/nnicompress run recipe=$(RECIPE)

test: lint type  ## lint, types and tests; SLOW=1 includes the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(MARKERS)

lint: $(VENV)/.installed-dev  ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(VENV)/.installed-dev  ## mypy --strict on the package
	$(BIN)/mypy

recipes: $(VENV)/.installed  ## check every shipped recipe, without training
	@for recipe in recipes/*.yaml; do echo "== $$recipe"; $(BIN)/nnicompress check $$recipe || exit $$?; done

bench: $(VENV)/.installed-dev  ## run every benchmark; each prints both sides
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit $$?; done

clean:  ## remove what was built and cached; runs/ and the virtual environment stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find nnicompress tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an installation is repeated only when what it depends on changes.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; choose one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev,export]'
	@touch $@ $(VENV)/.installed
