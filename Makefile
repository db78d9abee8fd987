# Everything from a fresh clone with Python 3.11 or newer: `make demo`, `make test`. `make help` lists the rest.
# Other Python: make demo PYTHON=python3.12. More arguments: make demo ARGS="--short", make test ARGS="-k bank".
# Tests run in two processes: make test WORKERS=0 ARGS="--pdb" in one.

PYTHON ?= python3
WORKERS ?= 2
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo examples test check format lint types layers docs clean

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.installed ## watch a small language model learn from its own work (minutes, two cores)
	@$(BIN)/elm-agent demo $(ARGS)

examples: $(VENV)/.installed ## the tutor and the solver of examples/, shortened (a minute, two cores)
	@$(BIN)/python examples/tutor/tutor.py --scripted --short --home .elm/examples
	@$(BIN)/python examples/solver/solver.py --short --home .elm/examples

test: $(VENV)/.installed-dev ## all tests
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) $(ARGS)

check: $(VENV)/.installed-dev format lint types layers test ## what CI checks: format, lint, types, layers, tests

format: $(VENV)/.installed-dev ## is everything formatted? (`ruff format` does it)
	@$(BIN)/ruff format --check .

lint: $(VENV)/.installed-dev ## ruff's rules
	@$(BIN)/ruff check .

types: $(VENV)/.installed-dev ## mypy --strict on the library
	@$(BIN)/mypy

layers: $(VENV)/.installed-dev ## imports point down only
	@$(BIN)/lint-imports

docs: $(VENV)/.installed-dev ## the documentation site, into site/; make docs ARGS=serve shows it while you write
	@$(BIN)/properdocs $(or $(ARGS),build)

clean: ## remove the virtual environment, caches and the site; banks and models stay
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The stamps make a warm start quick: pip runs again only when what we depend on has changed.
$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.python
	@echo "Installing elm_agent into $(VENV); the first time this takes a few minutes."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.python
	@echo "Installing elm_agent and its development tools into $(VENV); the first time this takes a few minutes."
	@$(INSTALL) --editable ".[dev]"
	@touch $@ $(VENV)/.installed

# pip 25.3 is the first that tells where a wheel lies without fetching it: model downloads resume from there on.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "elm_agent needs Python 3.11 or newer; $(PYTHON) is older or missing: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; from importlib.metadata import version; sys.exit(tuple(map(int, version("pip").split(".")[:2])) < (25, 3))' || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.3"
	@touch $@
