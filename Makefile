# Two commands matter: `make demo` merges a small pair offline, `make test` runs every check. Each makes its own .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
FROZEN := build/out/venv
FROZEN_PYTHON := $(FROZEN)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
ARGS ?=
DATA ?= build/data
MINUTES ?= 60
OUT ?= build/out/soak

# Nothing here needs the Hub once the packages are installed.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Threads that wait give their core away; spinning ones make the tests crawl on a busy machine.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test moments soak lint typecheck format bench gpu real table methods binary smoke release audit pinned hashes clean

help:
	@echo "make demo       merge the demo pair and write tmerge-demo/report.html"
	@echo "make test       lint, types and tests, as the continuous integration runs them"
	@echo "make moments    interrupts every command at 20 moments; four minutes"
	@echo "make soak       attacks tmerge on purpose for MINUTES (60) and writes a page of figures into OUT"
	@echo "make lint       ruff: rules and formatting"
	@echo "make typecheck  mypy"
	@echo "make format     rewrite the code as ruff formats it"
	@echo "make bench      the benchmarks of tests/benchmarks, and a table of all ratios"
	@echo "make gpu        one page about this machine's CUDA device; under ten minutes; ARGS=--dry-run without one"
	@echo "make real       two models and text of yours: scout, training, placebo, choice, as one table; up to 90 minutes"
	@echo "make table      all methods on two pairs at equal training tokens, as a table; about half an hour"
	@echo "make methods    all merge methods beside their placebos on two pairs, three seeds; about half an hour"
	@echo "make binary     dist/tmerge, one file that needs no Python; about ten minutes"
	@echo "make smoke      tries dist/tmerge in an empty environment"
	@echo "make release    archive, SHA256SUMS, SBOM and licences of dist/tmerge"
	@echo "make audit      licences and known vulnerabilities of what is in dist/sbom.cdx.json"
	@echo "make pinned     installs exactly constraints.hashes.txt, every file checked, into build/out/pinned"
	@echo "make hashes     writes constraints.hashes.txt anew; needs uv"
	@echo "make clean      remove .venv, caches and build outputs (runs are kept)"

demo: $(VENV)/installed
	$(BIN)/tmerge demo $(ARGS)

test: lint typecheck
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

moments: $(VENV)/installed-dev
	TMERGE_MOMENTS=20 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests/test_stopping.py tests/tui/test_traps.py $(ARGS)

soak: $(VENV)/installed-dev
	PYTHONPATH=. $(BIN)/python -m tests.soak.page --minutes $(MINUTES) --out $(OUT) $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/installed-dev
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

table: $(VENV)/installed-dev
	PYTHONPATH=. $(BIN)/python build/table.py --data $(DATA) --out build/out/table $(ARGS)

methods: $(VENV)/installed-dev
	PYTHONPATH=. $(BIN)/python build/methods.py --data $(DATA) --out build/out/methods $(ARGS)

bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.benchmarks $(ARGS)

gpu: $(VENV)/installed-dev
	$(BIN)/python -m tests.benchmarks.gpu $(ARGS)

real: $(VENV)/installed-dev
	$(BIN)/python -m tests.real $(ARGS)

binary: $(FROZEN)/installed
	$(FROZEN_PYTHON) build/binary.py $(ARGS)

smoke: $(FROZEN)/installed
	$(FROZEN_PYTHON) build/smoke $(ARGS)

release: $(FROZEN)/installed
	$(FROZEN_PYTHON) build/release.py $(ARGS)

audit:
	$(PYTHON) build/audit.py $(ARGS)

pinned:
	$(PYTHON) -m venv --clear build/out/pinned
	build/out/pinned/bin/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r constraints.hashes.txt
	build/out/pinned/bin/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation .
	build/out/pinned/bin/tmerge --version

hashes:
	$(PYTHON) build/hashes.py

clean:
	rm -rf $(VENV) build/out dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find tmerge_tui tests build -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say what is installed, so a second call starts at once; a changed pin or dependency installs again.
$(VENV)/installed: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "installing packages into $(VENV)/ (a minute or more; torch is large)"
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "installing packages into $(VENV)/ (a minute or more; torch is large)"
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/installed

# What is frozen: the packages a run needs, and PyInstaller, in an environment of its own.
$(FROZEN)/installed: pyproject.toml constraints.txt
	@echo "installing packages into $(FROZEN)/ (a minute or more; torch is large)"
	$(PYTHON) -m venv --clear $(FROZEN)
	rm -rf build/out/wheel
	$(FROZEN_PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt ".[binary]"
	$(FROZEN_PYTHON) -m pip uninstall --quiet --yes tmerge-tui
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
	    sys.exit(0 if sys.version_info >= (3, 11) else f"found Python {v}, 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
