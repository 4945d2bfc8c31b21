# make faces   an environment, the package, and a sheet and a folder of 1000 faces
# make test    what CI runs: lint, types, tests
# make lint    ruff and mypy alone
# make clean   what the above made

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTHON ?= python3
SEED ?= $(shell date +%s)

.PHONY: faces test lint clean

faces: $(VENV)/.runtime
	$(BIN)/pgsr-generate --count 1000 --out faces

# In random order (make test SEED=... repeats one), without a home or a locale: tests say what they need.
test: $(VENV)/.dev lint
	env -u HOME LC_ALL=C OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --randomly-seed=$(SEED)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/types_view.py

clean:
	rm -rf $(VENV) faces build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("pgsr needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[cpu]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[cpu,dev]'
	$(PIP) --no-deps spandrel  # without torchvision, of which PyPI has no build for the CPU's PyTorch
	touch $@ $(VENV)/.runtime
