# make run   sets everything up and runs the example; PROMPTS=my.jsonl runs your own file, ARGS="…" adds flags
# make test  sets everything up and runs the tests

PYTHON ?= python3
PROMPTS ?= examples/prompts.jsonl
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test check bench compile clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{ printf "  make %-9s %s\n", $$1, $$2 }'

run: $(VENV)/.ready  ## run the batch on PROMPTS (default: examples/prompts.jsonl); ARGS="…" adds flags
	@$(BIN)/python -m pipelines.run --prompts "$(PROMPTS)" $(ARGS)

test: $(VENV)/.ready-dev  ## run the tests
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile --cov --cov-report=term:skip-covered

check: $(VENV)/.ready-dev  ## run the static checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy clients components pipelines benchmarks
	$(BIN)/python -m pipelines.compile --check

bench: $(VENV)/.ready-dev  ## measure the speed claims beside other clients; ARGS="--quick" or names, such as ARGS="cpu kill"
	@$(BIN)/python -m benchmarks $(ARGS)

compile: $(VENV)/.ready  ## write compiled/ anew
	@$(BIN)/python -m pipelines.compile

clean:  ## remove the virtual environment
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " \
	  + sys.version.split()[0] + ". Choose another with: make run PYTHON=python3.12")'
	@echo "Setting up $(VENV), once; this takes a minute or two"
	@$(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || ( \
	  rm -rf $(VENV) && $(PYTHON) -m pip install -qq --target $(VENV)-tool virtualenv && \
	  PYTHONPATH=$(VENV)-tool $(PYTHON) -m virtualenv --quiet $(VENV) && rm -rf $(VENV)-tool )

$(VENV)/.ready: setup.py constraints.txt | $(VENV)/bin/python
	@$(PIP) --editable .
	@touch $@

$(VENV)/.ready-dev: setup.py constraints.txt $(VENV)/.ready
	@$(PIP) --editable '.[dev]'
	@touch $@
