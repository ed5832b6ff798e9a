# make run   sets everything up and runs the example; PROMPTS=my.jsonl runs your own file, ARGS="…" adds flags
# make test  sets everything up and runs the tests

PYTHON ?= python3
PROMPTS ?= examples/prompts.jsonl
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
GOAL := $(or $(firstword $(MAKECMDGOALS)),run)

PYTEST := $(BIN)/python -m pytest --dist loadfile

# A process more than cores: most tests wait, for sockets and processes of their own.
WORKERS = $(shell $(BIN)/python -c 'import os; print(1 + (os.cpu_count() or 1))')

# What is done about a failed install; pip's own line, which says what went wrong, stands above it.
PIP_FAILED = { echo "error: the packages could not be installed into $(VENV), for the reason above. Behind a proxy set \
HTTPS_PROXY, with an index of your own PIP_INDEX_URL; $(VENV) takes about 1 GB of disk. Then: make clean $(GOAL)" >&2; \
exit 1; }

.DEFAULT_GOAL := help
.PHONY: help run test test-all check bench compile clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{ printf "  make %-9s %s\n", $$1, $$2 }'

run: $(VENV)/.ready  ## run the batch on PROMPTS (default: examples/prompts.jsonl); ARGS="…" adds flags
	@$(BIN)/python -m pipelines.run --prompts "$(PROMPTS)" $(ARGS)

test: $(VENV)/.ready-dev  ## run the tests but the slow ones; ARGS="tests/unit -k cron" chooses among them
	@$(PYTEST) --numprocesses $(WORKERS) --hypothesis-profile quick -m "not slow" $(ARGS)

test-all: $(VENV)/.ready-dev  ## run every test, and tell what they cover
	@$(PYTEST) --numprocesses auto --cov --cov-report=term:skip-covered $(ARGS)

check: $(VENV)/.ready-dev  ## run the static checks: ruff, mypy, compiled/ up to date
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy clients components pipelines benchmarks
	$(BIN)/python -m pipelines.compile --check

bench: $(VENV)/.ready-dev  ## measure the speed claims beside other clients; ARGS="--quick" or names, such as ARGS="cpu kill"
	@$(BIN)/python -m benchmarks $(ARGS)

compile: $(VENV)/.ready  ## write compiled/ anew
	@$(BIN)/python -m pipelines.compile

clean:  ## remove the virtual environment
	rm -rf $(VENV) $(VENV)-tool

$(VENV)/bin/python:
	@[ -w . ] || { echo "error: $(CURDIR) is not writable, and $(VENV) and results/ are made there. Copy the project to \
	  a folder of your own" | tr -s ' ' >&2; exit 1; }
	@command -v "$(PYTHON)" >/dev/null || { echo "error: there is no $(PYTHON) here. Install Python 3.11 or newer, or \
	  name one: make $(GOAL) PYTHON=/path/to/python3.12" | tr -s ' ' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " \
	  + sys.version.split()[0] + ". Name another: make $(GOAL) PYTHON=/path/to/python3.12")'
	@echo "Setting up $(VENV), once; this takes a minute or two"
	@"$(PYTHON)" -m venv --clear $(VENV) >/dev/null 2>&1 || ( \
	  rm -rf $(VENV) && "$(PYTHON)" -c 'import pip' 2>/dev/null || { \
	    echo "error: $(PYTHON) has neither ensurepip nor pip, so it cannot make $(VENV). Install them (Debian, Ubuntu: \
	    apt install python3-venv), or name another: make $(GOAL) PYTHON=/path/to/python3.12" | tr -s ' ' >&2; exit 1; }; \
	  "$(PYTHON)" -m pip install -qq --target $(VENV)-tool virtualenv && \
	  PYTHONPATH=$(VENV)-tool "$(PYTHON)" -m virtualenv --quiet $(VENV) && rm -rf $(VENV)-tool || $(PIP_FAILED) )

$(VENV)/.ready: setup.py constraints.txt | $(VENV)/bin/python
	@$(PIP) --editable . || $(PIP_FAILED)
	@touch $@

$(VENV)/.ready-dev: setup.py constraints.txt $(VENV)/.ready
	@$(PIP) --editable '.[dev]' || $(PIP_FAILED)
	@touch $@
