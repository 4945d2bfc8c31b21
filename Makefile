# make faces   an environment, the package, and a sheet and a folder of 1000 faces
# make test    what CI runs: lint, types, tests
# make lint    ruff and mypy alone
# make fuzz    five minutes of odd inputs for every reader (docs/fuzzing.md); MINUTES=60 for an hour
# make triton  the tests of pgsr-export triton in a real server, from a wheel of NVIDIA's (53 MB)
# make oldest  the runtime's tests with the lowest versions that pyproject.toml allows
# make newest  the same with CI's versions and another Python: make newest PYTHON=python3.13
# make mutants coverage  do the tests notice a change, and what do they run (CONTRIBUTING.md)
# make release the wheel, the same bytes anywhere, and its software bill of materials, in dist/
# make lock audit  hashes of constraints.txt's packages; whether any has a known fault
# make clean   what the above made

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTHON ?= python3
SEED ?= $(shell date +%s)
MINUTES ?= 5

.PHONY: faces test lint fuzz triton oldest newest mutants coverage release lock audit clean

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
	$(BIN)/python tests/fuzz --minutes $(MINUTES) --seed $(SEED)

# An environment of its own: the server's wheel wants numpy 1 and an older protobuf.
triton: $(VENV)/.dev $(VENV)-triton/.made
	$(BIN)/python -m pytest -m 'slow or not slow' tests/test_triton.py

oldest: $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-oldest
	$(BIN)/python tests/supply.py oldest > $(VENV)-oldest/oldest.txt
	$(BIN)/uv pip install --quiet --python $(VENV)-oldest/bin/python -r $(VENV)-oldest/oldest.txt
	$(BIN)/uv pip install --quiet --python $(VENV)-oldest/bin/python --no-deps --editable .
	env -u HOME LC_ALL=C OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest --numprocesses auto --dist loadfile $$($(BIN)/python tests/supply.py tests)

newest: $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(VENV)-newest
	$(BIN)/uv pip install --quiet --python $(VENV)-newest/bin/python --constraint constraints.txt $$($(BIN)/python tests/supply.py newest)
	env -u HOME LC_ALL=C OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest --numprocesses auto --dist loadfile $$($(BIN)/python tests/supply.py tests)

mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants.py

coverage: $(VENV)/.dev
	env -u HOME LC_ALL=C OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest --numprocesses auto --dist loadfile $(TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

release: $(VENV)/.dev
	$(BIN)/python tests/building.py dist

lock: $(VENV)/.dev
	$(BIN)/python tests/supply.py lock

audit: $(VENV)/.dev
	$(BIN)/uv tool run pip-audit --strict --disable-pip --no-deps --requirement constraints.lock

clean:
	rm -rf $(VENV) $(VENV)-triton $(VENV)-oldest $(VENV)-newest .coverage .coverage.* faces fuzz-found build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("pgsr needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[cpu]'
	touch $@

# By hash first, then what no lock can have: this checkout, and the CPU's PyTorch. Two have no right to what they
# ask for: spandrel to torchvision, of which PyPI has no build for that PyTorch, tritonclient to an older protobuf.
$(VENV)/.dev: pyproject.toml constraints.txt constraints.lock | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r constraints.lock
	$(PIP) --editable '.[cpu,dev]'
	touch $@ $(VENV)/.runtime

$(VENV)-triton/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,triton]'
	touch $@
