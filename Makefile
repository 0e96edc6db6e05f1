# Each target makes .venv and installs into it what it needs, once; the second run is fast.
# PYTHON chooses the interpreter that makes .venv:  make test PYTHON=python3.12
# PIP_ARGS is handed to pip install. torch is about 200 MB as the CPU build and gigabytes with
# CUDA; on Linux, name PyTorch's CPU index to be sure of the former:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# The constraints must stand in every pip command: a loose requirement takes another torch.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
DEMO_OUT := memfold-demo
DEMO_ARGS := assets/demo/model --data assets/demo/train.npz --holdout assets/demo/holdout.npz \
	--train-points --truth assets/demo/ground_truth.json --noises 8 --out $(DEMO_OUT)
T2I := assets/text_to_image
DEMO_PROMPTS := $(T2I)/model --prompts $(T2I)/suspects.txt --ordinary $(T2I)/ordinary.txt \
	--data $(T2I)/train.npz --steps 20 --guidance-scale 3 --mitigate reword --shown 6 --workers 2 \
	--out $(DEMO_OUT)/prompts

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test slow lint docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.base ## audit the small models in assets/ and write a report on each
	$(BIN)/memfold audit $(DEMO_ARGS)
	$(ONE_THREAD) $(BIN)/memfold audit $(DEMO_PROMPTS)

test: $(VENV)/.dev ## the tests, without the slow ones
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m "not slow"

slow: $(VENV)/.dev ## the slow tests: examples, experiments, benchmarks
	$(ONE_THREAD) $(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev ## ruff and mypy
	@status=0; \
	for check in "ruff check" "ruff format --check" "mypy"; do \
		echo "$$check"; $(BIN)/python -m $$check || status=1; \
	done; exit $$status

docs: $(VENV)/.docs ## the documentation, into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove what was made, .venv included
	rm -rf $(VENV) $(DEMO_OUT) site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
		echo "memfold needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1)."; \
		echo "Name another one, for instance: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' has no venv module; on Debian and Ubuntu: apt install python3-venv"; \
		exit 1; } >&2
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing memfold into $(VENV)"
	@$(INSTALL) --editable ".[transformers]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing memfold and what its tests need into $(VENV)"
	@$(INSTALL) --editable ".[dev,transformers,datasets,experiments]"
	@touch $@ $(VENV)/.base

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing memfold and what its documentation needs into $(VENV)"
	@$(INSTALL) --editable ".[docs,transformers,experiments]"
	@touch $@ $(VENV)/.base
