# `make help` lists the targets. PYTHON chooses the interpreter, SCALE, LAUNCHER and SEEDS what reproduce-all runs.
PYTHON ?= python3
SCALE ?= paper
LAUNCHER ?= local
SEEDS ?=
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo test check lint acceptance reproduce-all clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is not one. Choose with: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "$(PYTHON) has no venv. On Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A stamp per set of requirements: nothing is installed again until they change.
$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.dev ## Make .venv with everything that running and testing need

demo: $(VENV)/.run ## Install, run table 3a at scale smoke on a CPU, show the report
	$(BIN)/laurepro table3a --scale smoke --results runs/demo/results --runs runs/demo --data runs/demo/data

test: $(VENV)/.dev ## Install and run the tests
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## Lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint ## All that can be verified without running tests
	@report=$$($(BIN)/laurepro check) || { echo "$$report"; exit 1; }; tail -n 1 <<< "$$report"

acceptance: $(VENV)/.dev ## Train five seeds at scale smoke and hold their orderings (about 20 minutes on 2 cores)
	$(BIN)/laurepro run table3a table4/encnet-os8-lau4x --scale smoke --seeds 5 \
	  --results runs/acceptance/results --runs runs/acceptance --data runs/acceptance/data
	$(BIN)/python -m pytest -m acceptance

reproduce-all: $(VENV)/.run ## Every table: LAUNCHER=local|dry SCALE=paper|smoke SEEDS=N
	$(BIN)/laurepro run --all --scale $(SCALE) --launcher $(LAUNCHER) $(if $(SEEDS),--seeds $(SEEDS))
	$(if $(filter dry,$(LAUNCHER)),,$(BIN)/laurepro report --scale $(SCALE))

clean: ## Remove the environment and caches; runs/ and results/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
