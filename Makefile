# make faces   an environment, the package, and a sheet and a folder of 1000 faces
# make test    what CI runs: lint, types, tests
# make lint    ruff and mypy alone
# make fuzz    five minutes of odd inputs for every reader (docs/fuzzing.md); MINUTES=60 for an hour
# make triton  the tests of pgsr-export triton in a real server, from a wheel of NVIDIA's (53 MB)
# make clean   what the above made

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTHON ?= python3
SEED ?= $(shell date +%s)
MINUTES ?= 5

.PHONY: faces test lint fuzz triton clean

faces: $(VENV)/.runtime
	$(BIN)/pgsr-generate --count 1000 --out faces

# In random order (make test SEED=... repeats one), without a home or a locale: tests say what they need.
test: $(VENV)/.dev lint
	env -u HOME LC_ALL=C OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --randomly-seed=$(SEED)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/types_view.py

fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz --minutes $(MINUTES)

# An environment of its own: the server's wheel wants numpy 1 and an older protobuf.
triton: $(VENV)/.dev $(VENV)-triton/.made
	$(BIN)/python -m pytest -m 'slow or not slow' tests/test_triton.py

clean:
	rm -rf $(VENV) $(VENV)-triton faces fuzz-found build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("pgsr needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[cpu]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[cpu,dev]'
	$(PIP) --no-deps spandrel  # without torchvision, of which PyPI has no build for the CPU's PyTorch
	$(PIP) --no-deps tritonclient  # without its older protobuf: tests read its schema alone
	touch $@ $(VENV)/.runtime

$(VENV)-triton/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,triton]'
	touch $@
