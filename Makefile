# Everything from a bare clone with only Python (>= 3.11) and make: `make pretrain` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: install pretrain finetune evaluate test test-all bench style quality docs clean

install: $(VENV)/.installed

# spconv is wanted by the tests where a wheel exists; the markers in pyproject.toml skip it elsewhere.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev,spconv]"
	touch $@

pretrain finetune evaluate: $(VENV)/.installed
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no recipes/$@.py $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(ARGS)

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not network" $(ARGS)

# Measures on this machine and writes benchmarks/results/ and the tables of docs/performance.md; ARGS=sparse_unet for a part.
bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks $(ARGS)
	$(BIN)/python -m benchmarks.report

style: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
