# `make help` lists the targets. PYTHON selects the interpreter.
PYTHON ?= python3
SCALE ?= paper
LAUNCHER ?= local
SEEDS ?=
CLUSTER ?=
NPROC ?=
SET ?=
EDITION ?=
GPU ?=
CUDA ?= 13
TIME_LIMIT ?= 600
JOBS_PER_GPU ?= 4
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo test test-gpu bench-gpu gpu-proof check lint docs acceptance evidence report reproduce-all clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or newer is required, and $(PYTHON) is older or absent. Try: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# OFFLINE=1 installs nothing: the environment sees this checkout and every package of PYTHON. For machines without network.
ifdef OFFLINE
VISIBLE := import site, sysconfig; print(sysconfig.get_path("purelib"), *site.getsitepackages(), sep="\n")
$(VENV)/.run $(VENV)/.dev:
	$(PYTHON) -m venv --without-pip $(VENV)
	{ echo '$(CURDIR)'; $(PYTHON) -c '$(VISIBLE)'; } > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/offline.pth"
	printf '#!/bin/sh\nexec "$${0%%/*}/python" -m laurepro "$$@"\n' > $(BIN)/laurepro
	chmod +x $(BIN)/laurepro
	@touch $@
CUPY :=
else
CUPY = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cuda$(CUDA)]'
# One stamp per set of requirements: nothing is reinstalled until they change.
$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
endif

install: $(VENV)/.dev ## Create .venv with everything needed to run and test

DEMO := --scale smoke --results runs/demo/results --runs runs/demo

demo: $(VENV)/.run ## Install, run table 3a at scale smoke on a CPU, print the report
	$(BIN)/laurepro table3a $(DEMO) --data runs/demo/data
	@printf '%s\n' '' 'Records: runs/demo/results. The images are generated and the networks small and briefly trained, so these' \
	  'numbers check the installation; they say nothing about the paper.' 'Next:' \
	  '  source $(BIN)/activate' \
	  '  laurepro report table3a $(DEMO) --format html --output demo.html' \
	  '  laurepro explain table3a/encnet-os8-lau4x-off --scale smoke' \
	  '  laurepro new upsampler my_upsampler'

test: $(VENV)/.dev ## Install, then run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-gpu: $(VENV)/.dev ## Test the kernels on a GPU with CuPy (CUDA=12|13, or OFFLINE=1); fails without a GPU
	$(CUPY)
	LAUREPRO_REQUIRE=gpu $(BIN)/python -m pytest -m gpu

# BENCH_OPTIONS="--device cpu --shapes small --rounds 1" is a dry run. Images are read on a CPU whatever the device.
BENCH_OPTIONS ?= --device cuda --shapes full

bench-gpu: $(VENV)/.run ## Run every benchmark on a GPU, into results/bench/
	$(CUPY)
	mkdir -p results/bench
	@failed=0; \
	for name in step epoch ops loss eval fps; do \
	  $(BIN)/laurepro bench $$name $(BENCH_OPTIONS) --output results/bench/$$name.json || failed=1; \
	done; \
	$(BIN)/laurepro bench data $(filter-out --device cpu cuda auto,$(BENCH_OPTIONS)) \
	  --output results/bench/data.json || failed=1; \
	exit $$failed

# On a bare machine: no network, no pip, no git. docs/speed.md says what to bring. GPU_PROOF_OPTIONS=--dry needs no GPU.
TIME ?= 560
OUT ?= gpu-proof
gpu-proof: ## On a GPU, TIME seconds: check, time and train there, files into OUT=gpu-proof
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -P laurepro/bench/gpu_proof/__main__.py \
	  --time $(TIME) --output $(OUT) $(GPU_PROOF_OPTIONS)

lint: $(VENV)/.dev ## Check lint, format, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.run ## Write docs/commands.md and build the site, site/index.html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/_commands.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

check: lint ## Everything that can be verified without running tests
	@report=$$($(BIN)/laurepro check) || { echo "$$report"; exit 1; }; tail -n 1 <<< "$$report"

acceptance: $(VENV)/.dev ## Tests that take hours: seeds at scale smoke, kills, every mutation, simulations
	$(BIN)/laurepro run table3a table4/encnet-os8-lau4x --scale smoke --seeds 5-9 \
	  --results runs/acceptance/results --runs runs/acceptance --data runs/acceptance/data
	rm -f runs/acceptance/*.xml
	$(BIN)/python -m pytest -m acceptance --timeout 1800 --junit-xml runs/acceptance/junit.xml; code=$$?; \
	  [ $$code -ne 1 ] || { $(BIN)/python -m pytest -m acceptance --last-failed --last-failed-no-failures none \
	    --timeout 1800 --junit-xml runs/acceptance/repeated.xml; code=$$?; }; \
	  $(BIN)/python tests/acceptance_report.py results/acceptance.json runs/acceptance/junit.xml \
	    runs/acceptance/repeated.xml && exit $$code

# The most decisive steps come first; a step that has its records takes a second. Without a GPU, images have half the size.
EVIDENCE_SCALE ?= $(if $(shell nvidia-smi -L 2>/dev/null | grep '^GPU'),camvid,camvid-cpu)
EVIDENCE = $(or $(EVIDENCE_$(EVIDENCE_SCALE)),$(EVIDENCE_CAMVID))
EVIDENCE_CAMVID = "table3a --seeds 3" "tablec --seeds 3" "table2 --seeds 3" "table1 table4 table7 --seeds 3" \
  "table3a table2 --seeds 5" "table1 table4 table7 --seeds 5"
OS8 = table3a/encnet-os8
PRIMARY = "$(OS8)-bilinear $(OS8)-grid4x $(OS8)-lau4x-off table4/encnet-os8-lau4x --seeds 10"
EVIDENCE_camvid-cpu = "table3a --seeds 3" "tablec --seeds 3" $(PRIMARY) "table1 table2 table4 table7 table9 --seeds 3"
EVIDENCE_camvid-imagenet = $(PRIMARY) \
  "table1 table2 $(addprefix $(OS8)-pixelshuffle,2x 3x 2x2x) table4/encnet-os8-deformable --seeds 10" \
  "$(addprefix tablec/,lau4x-long-step grid4x-long-step lau4x-off-weighted-mean grid4x-valid lau4x-valid) --seeds 10" \
  "$(addprefix tablec/,lau4x-off-valid bilinear-norm-uniform lau4x-norm-uniform) --seeds 10" \
  "$(addprefix tablef/,lau2x2x-off lau2x2x2x-off lau4x-reg lau4x-reg-radius3 lau4x-off-best) --seeds 10" \
  "tablef --seeds 10" "table3a table4 --seeds 5" "tablec --seeds 5" "table9 --seeds 5" "table7 --seeds 5"
EVIDENCE_camvid-imagenet-tuned = "table3a table4 table9 --seeds 10"
# A scale that tunes its rows: the trials first, then the choice, whose file is to be committed before a row is run with it.
TUNED = $(filter %-tuned,$(EVIDENCE_SCALE))
TRIALS = $(if $(TUNED),$(BIN)/laurepro tune $(TUNED) --commands | sed 's/^laurepro run //' && echo tune &&)
TUNE = $(BIN)/laurepro tune $(TUNED)

evidence: $(VENV)/.run ## Train on CamVid for at most TIME_LIMIT minutes, pack the records; resumes
	@end=$$(( $$(date +%s) + 60 * $(TIME_LIMIT) )); failed=0; \
	mapfile -t steps < <($(TRIALS) printf '%s\n' $(EVIDENCE)); \
	for step in "$${steps[@]}"; do \
	  left=$$(( end - $$(date +%s) )); [ $$left -gt 5 ] || break; \
	  if [ "$$step" = tune ]; then \
	    $(TUNE) && continue; \
	    $(TUNE) --write && echo "commit experiments/scales/$(TUNED).yaml, then repeat the command"; \
	    failed=$$?; break; \
	  fi; \
	  $(BIN)/laurepro run $$step --scale $(EVIDENCE_SCALE) --jobs-per-gpu $(JOBS_PER_GPU) \
	    --time-limit $$(( left / 60 )).$$(( left % 60 * 10 / 60 )) || { failed=$$?; [ $$failed -eq 1 ] || break; }; \
	done; \
	if [ -d results/records ]; then \
	  mkdir -p runs && tar -czf runs/evidence-$(EVIDENCE_SCALE).tar.gz -C results records $$(cd results && ls -d diverged 2>/dev/null) \
	    && echo "packed: runs/evidence-$(EVIDENCE_SCALE).tar.gz"; \
	fi; exit $$failed

report: $(VENV)/.run ## Rewrite results/REPORT.md, REPORT.csv and results/tables/ from results/records
	$(BIN)/laurepro report --format csv --results-only --output results/REPORT.csv
	rm -f results/tables/*.md
	$(BIN)/laurepro report --format markdown --results-only --output results/REPORT.md --details results/tables

# A contradicted claim is a result and no failure: only a job or a data set can fail here. What is missing is named
# before any work: data sets and weights in the edition that the rows ask for and, for the GPU that GPU= names, memory.
SETS = $(foreach pair,$(SET) $(if $(EDITION),data.options.edition=$(EDITION)),--set '$(pair)')
OF_ROWS = --scale $(SCALE) $(SETS)
OF_JOBS = $(OF_ROWS) $(if $(SEEDS),--seeds $(SEEDS))
JOBS = $(if $(NPROC),--nproc-per-node $(NPROC)) $(if $(CLUSTER),--cluster $(CLUSTER))
FIT = $(if $(GPU),--fit --gpu $(GPU) --gpus $(or $(NPROC),1) --nproc-per-node $(or $(NPROC),1))

reproduce-all: $(VENV)/.run ## Run every table: LAUNCHER=local|slurm|dry SCALE= SEEDS= CLUSTER= NPROC= GPU= EDITION= SET=
ifeq ($(LAUNCHER),dry)
	$(BIN)/laurepro run --all $(OF_JOBS) --launcher dry $(JOBS)
else
	$(BIN)/laurepro plan --all $(OF_JOBS) --ready $(FIT)
	$(BIN)/laurepro data verify $(OF_ROWS)
	$(BIN)/laurepro run --all $(OF_JOBS) --launcher $(LAUNCHER) $(JOBS)
	$(BIN)/laurepro report $(OF_ROWS)
	$(BIN)/laurepro report $(OF_ROWS) --format html --output results/report-$(SCALE).html
	$(BIN)/laurepro claims $(OF_ROWS)
endif

clean: ## Remove the environment and caches; keeps runs/ and results/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
