# `make quickstart` and `make test` need make and a Python that pyproject.toml allows (PYTHON=python3.13), nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a process: two gain little on networks of this size, and collapse on a busy machine.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test test-all style wheel clean
.DEFAULT_GOAL := quickstart

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-deps -e . # refuses an older Python before torch is downloaded
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

quickstart: $(VENV)/.installed ## Both stages on scikit-learn's digits, into outputs/quickstart.
	$(BIN)/python scripts/train.py scripts/quickstart.yaml --overwrite_output_dir

test: $(VENV)/.installed ## All tests but the long ones.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.installed ## All tests.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "long or not long"

style: $(VENV)/.installed ## Formats the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(VENV)/.installed ## Builds dist/*.whl.
	$(BIN)/pip wheel -q --no-deps -w dist .

clean: ## Removes what the other targets made.
	rm -rf $(VENV) outputs dist
