# paredown: `make demo` shows the main job, `make test` proves it. Everything else is listed by `make help`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
QUANTIZATION := resnet20 resnet56 lite0 resnet18 gated forms lowbit mixed rounding minilm stories zoo arithmetic memory
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: help demo test test-all check zoo bench clean
.DEFAULT_GOAL := help

help:           ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(READY)  ## train a small convnet on digits, compress it, write runs/demo (under 3 minutes)
	$(BIN)/paredown demo --out runs/demo

test: $(READY)  ## the tests that CI runs
	$(PYTEST)

test-all: $(READY) ## every test, the slow ones too
	$(PYTEST) -m ''

check: $(READY) ## format, lint, types, layers, and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) tests/core tests/task tests/graph tests/measure tests/render --ignore tests/graph/test_random_graphs.py

zoo: $(VENV)/.bench ## prune every model of the zoo, into benchmarks/results/zoo.csv (an hour; goes on where it stopped)
	$(BIN)/python -m benchmarks.zoo

bench: $(VENV)/.bench ## the figures that the documents state, into benchmarks/results/ (hours; goes on where it stopped)
	$(BIN)/python -m benchmarks.digits
	$(BIN)/python -m benchmarks.resnet20
	$(BIN)/python -m benchmarks.resnet56
	$(BIN)/python -m benchmarks.resnet18_sensitivity
	$(BIN)/python -m benchmarks.attention
	$(BIN)/python -m benchmarks.attention latency
	$(BIN)/python -m benchmarks.analysis
	$(BIN)/python -m benchmarks.criteria
	$(BIN)/python -m benchmarks.sparsity
	$(BIN)/python -m benchmarks.reconstruction
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.train_steps
	$(BIN)/python -m benchmarks.batch_growth
	$(BIN)/python -m benchmarks.students
	$(BIN)/python -m benchmarks.minilm
	$(BIN)/python -m benchmarks.stories_mlp
	$(BIN)/python -m benchmarks.nas201_choice
	$(BIN)/python -m benchmarks.nas201
	$(BIN)/python -m benchmarks.elastic_resnet20
	for case in $(QUANTIZATION); do $(BIN)/python -m benchmarks.quantization $$case || exit 1; done

clean:          ## remove what the targets above made, except results
	rm -rf $(VENV) runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Installed once, and again only when pyproject.toml changed.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# The peers and models that only benchmarks need.
$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@
