# Targets for people and for .ci/run. Each one sets up what it needs; a second time that takes no time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# Worker processes of the tests. Each computes with one thread.
JOBS ?= 2
# More arguments for pytest, e.g. `make test ARGS="-k lifecycle"`, or for pip, e.g. another index.
ARGS ?=
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# The exact torch comes first: resolved together with the rest, pip may choose another build of it.
TORCH := $(shell grep -E '^torch==' constraints.txt)
INPUTS := pyproject.toml constraints.txt

# One thread per process: runs are then the same bit for bit, and workers do not fight for cores.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1

.PHONY: help setup dev demo test acceptance soak lint format docs bench clean

help: ## show the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.stamp-train ## make .venv with Esper and what training needs; leaves .venv/bin/esper

dev: $(VENV)/.stamp-dev

demo: setup ## grow a network on real data, from start to report
	@$(BIN)/esper demo

test: dev ## every behaviour, short runs
	@$(BIN)/python -m pytest -n $(JOBS) -m "not acceptance" $(ARGS)

acceptance: dev ## the long shows: whole runs, killed processes, damaged files
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m acceptance $(ARGS)

soak: dev ## kill redis-server 20 times under writers, and count what is lost
	@$(BIN)/python tests/soak.py $(ARGS)

lint: dev ## ruff, mypy and the layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: dev ## put the code in its form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: dev ## make the generated pages of docs/reference anew
	@$(BIN)/python docs/generate.py

bench: $(VENV)/.stamp-bench ## the quick benchmarks, one JSON line per measure
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove caches and builds; never .esper or .venv
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Esper needs Python 3.11 or newer; name one with 'make setup PYTHON=python3.12'" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "the venv module is missing; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.stamp-train: $(INPUTS) | $(BIN)/python
	@echo "setting up $(VENV): this takes a few minutes the first time" >&2
	@$(PIP) install $(PIP_ARGS) -c constraints.txt '$(TORCH)'
	@$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[train,s3,daemons]'
	@touch $@

# The power-loss tests build a small library with gcc that notes what was forced to disk; torch.compile runs g++; the
# Redis tests start servers.
$(VENV)/.stamp-dev: $(VENV)/.stamp-train
	@command -v gcc >/dev/null && command -v g++ >/dev/null && command -v redis-server >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq gcc g++ libc6-dev redis-server; } || \
	  { echo "the tests need gcc, g++ and redis-server; on Debian or Ubuntu: apt-get install gcc g++ libc6-dev redis-server" >&2; exit 1; }
	@$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[train,s3,daemons,dev]'
	@touch $@

$(VENV)/.stamp-bench: $(VENV)/.stamp-train
	@$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[train,s3,daemons,bench]'
	@touch $@
