# `make quickstart` and `make test` need make and a Python that pyproject.toml allows (PYTHON=python3.13), nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Of test-gpu and release-model; or a local copy.
DATASET ?= ylecun/mnist
# Of release-model: its folder, more flags of scripts/train.py, and the repository that the printed command names.
OUTPUT_DIR ?= outputs/vqvae-mnist
FLAGS ?=
HUB_MODEL_ID ?= OWNER/vqvae-mnist
# One thread a process: two gain little on networks of this size, and collapse on a busy machine.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test test-all test-browser test-gpu release-model style wheel clean
.DEFAULT_GOAL := quickstart

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --dry-run --no-deps . # refuses an older Python before torch is downloaded
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

quickstart: $(VENV)/.installed ## Both stages on scikit-learn's digits, into outputs/quickstart.
	$(BIN)/python scripts/train.py scripts/quickstart.yaml --overwrite_output_dir

test: $(VENV)/.installed ## All tests but the long ones and those of the page in the browser.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	@echo "Left out: long tests (make test-all), the page in a browser (make test-browser), a GPU (make test-gpu)."

test-all: $(VENV)/.installed ## The long tests, too.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not browser"

# The page's runtime comes from npm, in the version that the page names.
test-browser: $(VENV)/.installed ## The page in Chromium; chromium and npm must be there.
	@for name in chromium npm; do command -v $$name > /dev/null || \
	  { echo "make test-browser: there is no $$name here. On Debian: apt-get install $$name"; exit 1; }; done
	$(BIN)/python -m pytest -m browser tests/test_browser.py

# Installs nothing: in $(VENV), or with PYTHON where there is none, torch must be able to use the GPU.
test-gpu: PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
test-gpu: ## On an NVIDIA GPU: the tests that need one, the speed of sampling, and an MNIST run with its time.
	@$(PYTHON) -c "import torch; torch.empty(1, device='cuda')" 2>/dev/null || \
	  { echo "make test-gpu: $(PYTHON) has no torch that can use a GPU here."; exit 1; }
	$(PYTHON) -m pytest -m cuda $$(grep -rl "mark.cuda" tests --include=test_*.py)
	$(PYTHON) scripts/benchmark.py sample --rounds 5
	start=$$(date +%s); $(PYTHON) scripts/train.py --dataset_name $(DATASET) --output_dir outputs/mnist-gpu \
	  --mixed_precision bf16 --overwrite_output_dir && echo "The MNIST run took $$(($$(date +%s) - start)) s."

release-model: $(VENV)/.installed ## The README's MNIST run, with ONNX files, ready to push. A stopped one goes on.
	$(BIN)/python scripts/train.py --dataset_name $(DATASET) --output_dir $(OUTPUT_DIR) --mixed_precision bf16 --onnx \
	  --resume_from_checkpoint latest $(FLAGS)
	@echo With a token of \"hf auth login\", this publishes it:
	@echo $(BIN)/python scripts/push_to_hub.py $(OUTPUT_DIR) --hub_model_id $(HUB_MODEL_ID)

style: $(VENV)/.installed ## Formats the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(VENV)/.installed ## Builds dist/*.whl.
	$(BIN)/pip wheel -q --no-deps -w dist .

clean: ## Removes what the other targets made.
	rm -rf $(VENV) outputs dist
