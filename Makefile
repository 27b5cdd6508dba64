# Everything a fresh machine needs: `make audit`, `make test`. Python >= 3.11 and nothing else.
.DEFAULT_GOAL := help
.PHONY: help audit test test-all lint bench docs clean
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
SETTINGS := pyproject.toml constraints.txt src/holdfast/_version.py
WORKERS ?= 2

help:
	@echo 'make audit     train a small classifier, audit it, write report.html'
	@echo 'make test      the tests (about three minutes on two cores)'
	@echo 'make test-all  the slow tests too'
	@echo 'make lint      ruff and pyright'
	@echo 'make bench     measure what takes minutes of the figures; writes benchmarks/results'
	@echo 'make docs      the documentation, as HTML in site/'
	@echo 'make clean     remove all that the others made'

audit: $(READY)
	$(BIN)/holdfast demo

# One thread per worker: more only fight over the same cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m 'not slow and not gpu'

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(READY) $(PEERS)
	for file in engine_cost retirement verdicts peers charts; do $(BIN)/python benchmarks/$$file.py; done

docs: $(READY)
	$(BIN)/sphinx-build --fail-on-warning --quiet --builder html docs site
	@echo 'Open site/index.html'

clean:
	rm -rf $(VENV) site report.html holdfast-* .pytest_cache .ruff_cache .hypothesis

# The first interpreter that is new enough; nothing is installed outside $(VENV).
$(READY): $(SETTINGS)
	@set -- $(PYTHON) python3 python3.13 python3.12 python3.11 python; \
	for python in "$$@"; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Installing into $(VENV) with $$("$$python" --version)"; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo 'No Python >= 3.11 found. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11' >&2; \
	exit 1
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[onnx,data,frontier]' --group test --group lint --group docs
	@touch $@

# Peers for benchmarks/peers.py, without the old pins they ask for.
$(PEERS): $(READY) benchmarks/peers.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement benchmarks/peers.txt
	@touch $@
