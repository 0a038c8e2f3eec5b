# Two targets do everything on a fresh machine: `make quickstart` and `make test`. Both set up .venv first.
# `make quick` is for the inner loop, `make test-all` adds larger networks; CONTRIBUTING.md says which tests are where.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS ?=

# One process per granted core. A file's tests stay in one process, so that a module's fixtures are made once; the order
# of the files is that of tests/conftest.py, longest first.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder

.PHONY: setup quickstart quick test test-all lint types reference check clean

setup: $(VENV)/.installed

# Editable, so that it is set up anew only when what it depends on changes. torch and torchvision come first and in one
# step: they must match each other.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -c constraints.txt torch torchvision
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -c constraints.txt -e '.[test]'
	touch $@

quickstart: setup
	$(BIN)/kdcompress distill --recipe quickstart --resume

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

quick: lint
	$(PYTEST) -m "not slow and not exhaustive"

test: lint types
	$(PYTEST) -m "not exhaustive"

test-all: lint types
	$(PYTEST)

reference: setup
	$(BIN)/python docs/generate_reference.py

check: test

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
