# Every target sets itself up: a virtual environment, torch by exact version, then the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TITAN := build/titan
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: bench demo test test-slow test-gpu test-titan test-torch fuzz mutants check docs site clean

demo: $(VENV)/.train  ## train four optimizers side by side, minutes on a laptop
	$(BIN)/polarlight compare

test: $(VENV)/.dev  ## all tests but the slow and GPU ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not gpu"

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

test-gpu: $(VENV)/.dev
	$(BIN)/pytest -m gpu

test-titan: $(TITAN)/.installed  ## torchtitan's container, recipe and FSDP2, which want older packages
	OMP_NUM_THREADS=1 $(TITAN)/bin/pytest tests/integrations/test_torchtitan.py

CORE_NEEDS := expecttest hypothesis numpy pytest pytest-xdist
CORE := tests/contracts tests/rules tests/linalg tests/test_optimizer.py tests/torch_contract

test-torch:  ## the core's tests under another release of torch: make test-torch VERSION=2.11.0
	@test -n "$(VERSION)" || { echo "which release? make test-torch VERSION=2.11.0"; exit 2; }
	$(PYTHON) -m venv build/torch-$(VERSION)
	grep -v '^torch==' constraints.txt > build/torch-$(VERSION)/constraints.txt
	build/torch-$(VERSION)/bin/pip install --disable-pip-version-check --quiet torch==$(VERSION)
	build/torch-$(VERSION)/bin/pip install --disable-pip-version-check --quiet \
		-c build/torch-$(VERSION)/constraints.txt -e . $(CORE_NEEDS)
	OMP_NUM_THREADS=1 build/torch-$(VERSION)/bin/python -m pytest -n 2 \
		-m "not slow and not gpu" $(CORE)

fuzz: $(VENV)/.dev  ## many random gradients, histories and bytes, anew each time
	FUZZ_EXAMPLES=2000 $(BIN)/pytest -n 2 tests/fuzz

mutants: $(VENV)/.dev  ## a sample of small changes to the code, and which of them no test notices
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation --minutes 15

check: $(VENV)/.dev  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python docs/make_reference.py > docs/reference.md

site: $(VENV)/.docs  ## the documentation as pages, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev  ## an optimizer step, ours and others', in one run; leave the machine alone
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[train,bench]"
	$(BIN)/python -m benchmarks.optimizer_step

clean:
	rm -rf $(VENV) build

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet $(TORCH)
	touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[train]"
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[train,dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[docs]"
	touch $@

$(TITAN)/.installed: constraints.txt constraints-titan.txt pyproject.toml
	$(PYTHON) -m venv $(TITAN)
	$(TITAN)/bin/pip install --disable-pip-version-check --quiet $(TORCH)
	$(TITAN)/bin/pip install --disable-pip-version-check --quiet -c constraints-titan.txt \
		-e ".[torchtitan]" pytest
	touch $@
