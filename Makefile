# One page of commands; `make help` lists them. Everything lives in .venv and build/, nothing is installed outside them.
#
# PYTHON    interpreter to build .venv from (3.10 to 3.13)
# TORCH     requirement for torch, e.g. TORCH='torch==2.13.0+cu130'; constraints.txt pins the default
# GPU_CHECK_ARGS  for gpu-check, e.g. GPU_CHECK_ARGS=--quick
# PIP_ARGS  more arguments for pip, e.g. PIP_ARGS='--index-url https://…'

SHELL := /bin/bash
PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow gpu-check check docs format clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## make .venv with everything in it
$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 14) else f"PYTHON={sys.executable}: expected Python 3.10 to 3.13, got {v[0]}.{v[1]}; set PYTHON")'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "PYTHON=$(PYTHON) has no venv module: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) '$(TORCH)' setuptools wheel
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c $(VENV)/constraints.txt -e '.[all,dev,docs]'
	@touch $@

demo: setup ## the main job, end to end, on MovieLens-100k: writes runs/demo/report.json
	$(BIN)/python examples/demo.py

test: setup ## the tests, the real server included (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -m 'not slow and not gpu'

test-slow: setup ## the long suites
	$(BIN)/python -m pytest -m 'slow and not gpu'

gpu-check: ## on a machine with an NVIDIA GPU: check and time every kernel (under 8 minutes; needs torch, triton, numpy alone)
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py $(GPU_CHECK_ARGS)

check: setup build/typecheck/longrec ## lint, format, types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p longrec

docs: setup build/typecheck/longrec ## the documentation site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: setup ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the installed layout (longrec.kernels is kernels/) as links, for tools that read files
build/typecheck/longrec: $(wildcard longrec/*.py) setup.py
	rm -rf $@ && mkdir -p $@
	ln -s $(patsubst %,../../../%,$(wildcard longrec/*.py) longrec/py.typed) $@/
	ln -s $(patsubst %,../../../%,cli server client python_backend training modeling datasets kernels) $@/

clean: ## remove what was built; keeps runs/ and data/
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
