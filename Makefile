# On a fresh machine two commands are enough: `make run` and `make test`. Each first installs what is missing.
PYTHON ?= python3
BIN := .venv/bin
RECIPE ?= laptop
RUN ?= runs/laptop

.PHONY: setup run test bench lint docs

setup: .venv/tested

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "groundup needs Python 3.11 or newer")'
	@echo "Installing into .venv what runs need: PyTorch and some twenty libraries; takes some minutes, once."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e .
	touch $@

.venv/tested: .venv/installed
	@echo "Installing what tests need too: pytest, transformers, Ray and others; takes a minute or two, once."
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[test,docs]'
	touch $@

run: .venv/installed
	$(BIN)/groundup run $(RECIPE) --run $(RUN)

test: setup lint docs
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build
	@echo "docs/_build/index.html"

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,bench]'
	$(BIN)/python benchmarks/run_all.py
