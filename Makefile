# Two commands do everything on a fresh machine: `make run` and `make test`. Each installs first when needed.
PYTHON ?= python3
BIN := .venv/bin
RECIPE ?= recipes/laptop.toml
RUN ?= runs/laptop

.PHONY: setup run test bench lint

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "groundup needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

run: setup
	$(BIN)/groundup run $(RECIPE) --run $(RUN)

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,bench]'
	$(BIN)/python benchmarks/run_all.py
