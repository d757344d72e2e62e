# From a fresh clone: `make demo` trains, verifies and exports a net; `make test` runs lint, types and tests.
# Both make .venv and install into it first; a second run starts at once, unless pyproject.toml or constraints.txt
# changed in between.

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The pins also hold in build environments (the package's own, and those of dependencies that come as source), where a
# build could otherwise pull another version: there pip reads the first variable up to release 25.2, then the second.
PINNED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
# fvcore and iopath come as source without a pyproject.toml: left to itself, an older pip runs their setup.py in .venv.
INSTALL := $(PINNED) $(PIP) install --use-pep517 -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint types unit format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  PYTHON=python3.12   the interpreter that .venv is made with (3.10 or newer)'
	@echo '  WORKERS=2           test processes'
	@echo '  ARGS="..."          more arguments: `make demo ARGS=--help`, `make unit ARGS="-k channels -x"`'

demo: .venv/installed-train ## Train a tiny net inside a wider one, verify and export it (pass options with ARGS)
	$(BIN)/netaug-fx train $(ARGS)

test: lint types unit ## Lint, types and tests, as continuous integration runs them

lint: .venv/installed-test ## Ruff: rules and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: .venv/installed-test ## Mypy, strict, on the library
	$(BIN)/python -m mypy --strict -p netaug_fx

# One thread a process: with more, two test processes fight over two cores and both get slower.
unit: .venv/installed-test ## The tests alone (pass pytest options with ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

format: .venv/installed-test ## Fix what Ruff can fix
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean: ## Remove .venv, builds and caches (runs/ stays)
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/created:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No '$(PYTHON)' on this machine. Name a Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "netaug_fx needs Python 3.10 or newer, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "'$(PYTHON)' cannot make virtual environments. Install its venv package (Debian: python3-venv)." >&2; \
	  exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed-train: .venv/created pyproject.toml constraints.txt
	$(INSTALL) -e '.[train]'
	@touch $@

.venv/installed-test: .venv/created pyproject.toml constraints.txt
	$(INSTALL) -e '.[train,test]'
	@$(BIN)/python benchmarks/zoos/torchvision_shim.py
	@touch .venv/installed-train $@
