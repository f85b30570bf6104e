# Overridable: PYTHON makes the environment, VENV holds it (an existing one is completed, what it
# has is kept), DETECTRON2 is any pip requirement: a git URL, a wheel, a path.
PYTHON ?= python3
VENV ?= .venv
export DETECTRON2 ?=
PYTEST_ARGS ?=

RUN = "$(VENV)/bin/python"
# A PYTHON that was asked for must be the one that is used.
SETUP_FLAGS = $(if $(filter file,$(origin PYTHON)),,--same-python)

.DEFAULT_GOAL := help
.PHONY: help setup data demo study experiments test gpu faults lint format clean docs

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "variables: PYTHON=$(PYTHON) VENV=$(VENV) DETECTRON2=$(DETECTRON2) PYTEST_ARGS=$(PYTEST_ARGS)"

setup:  ## virtual environment with torch, Detectron2 and this package
	@"$(PYTHON)" -c 'import sys; sys.version_info < (3, 6) and sys.exit("set-up FAILED: $(PYTHON) \
	is Python %s; Python 3.10 to 3.14 is needed" % sys.version.split()[0])'
	@"$(PYTHON)" scripts/setup_env.py "$(VENV)" $(SETUP_FLAGS)

data: setup  ## the demo's dataset, NEON trees
	@$(RUN) tools/prepare_data.py neon-trees

demo: data  ## train on NEON trees under two normalization batches; a leakage study of one seed
	@$(RUN) tools/demo.py
	@echo "next: make study (5 seeds), or configs/studies/my_head.yaml for a head of yours"

study: setup  ## the leakage study with 5 seeds: does a head cheat, and what repairs it?
	@$(RUN) tools/leakage_study.py --study configs/studies/demo.yaml

experiments: setup  ## batch size, moving averages, domains, same-class batches on digits, 5 seeds
	@$(RUN) tools/experiments.py --document docs/experiments.md

test: lint  ## set-up, style, all tests
	$(RUN) -m pytest tests -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10 $(PYTEST_ARGS)

gpu: setup  ## tests and benchmarks that need an NVIDIA GPU; writes docs/gpu.md
	@$(RUN) tools/benchmark.py gpu

faults: setup  ## kill, starve, spoil and deceive it, in full; writes docs/faults.md
	$(RUN) -m pytest tests/faults -q --timeout=1200 --faults docs/faults.md $(PYTEST_ARGS)

docs: setup  ## the documents and the Python interface as a site, in build/docs
	$(RUN) -W ignore -m sphinx -q -W --keep-going docs build/docs
	@echo "Open build/docs/index.html"

lint: setup  ## check the style and the types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

format: setup  ## repair the style
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

clean:  ## remove the environment (if set-up made it), caches and build files
	@if [ -e "$(VENV)/.bn_detect-made" ]; then rm -rf "$(VENV)"; fi
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find bn_detect tools tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
