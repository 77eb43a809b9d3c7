# Everything starts from python3 and make; each target sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPE_CHECKER := pyrefly check
export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test test-fast test-slow test-soak benchmark lint lint-check types clean

quickstart: $(VENV)/.core          ## from nothing to a fine-tuned, scored, exported model, on a CPU
	$(BIN)/python -m examples.quickstart.run

test: lint-check types test-fast   ## lint, types and all fast tests

test-fast: $(VENV)/.dev            ## all fast tests
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.dev            ## the tests that take minutes or gigabytes
	$(BIN)/python -m pytest -m slow

test-soak: $(VENV)/.dev            ## runs that are killed or fail again and again, on disks and in buckets
	$(BIN)/python -m pytest -m soak

benchmark: $(VENV)/.dev            ## forward and backward against transformers
	$(BIN)/python -m benchmarks.against_transformers

lint: $(VENV)/.dev                 ## mend what ruff can mend, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint-check: $(VENV)/.dev           ## the same checks, without a change to any file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev                ## the type checker over the library, the trainer and the evaluation
	$(BIN)/$(TYPE_CHECKER)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e ".[train,eval]"
	touch $@

# --group needs a recent pip; torch comes first and alone, so that its CPU build is what the others find.
$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -e ".[all]" --group dev --group reference
	touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
