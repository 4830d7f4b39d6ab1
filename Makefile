# Every target sets itself up: a virtual environment, torch by exact version, then the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TITAN := build/titan
SINKS := build/sinks
PINNED := build/pinned
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: bench demo gpu-report test test-slow test-gpu test-isa test-sinks test-titan test-torch fuzz mutants
.PHONY: check audit clean lock pinned sbom site

demo: $(VENV)/.train  ## train four optimizers side by side, three seeds each, minutes on a laptop
	$(BIN)/polarlight compare --preset demo --seeds 3

# Compiled modules are written whatever the environment says: workers and commands share them.
test: $(VENV)/.dev  ## all tests but the slow and GPU ones
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

test-gpu: $(VENV)/.dev
	$(BIN)/pytest -m gpu

test-titan: $(TITAN)/.installed  ## torchtitan's container, recipe and FSDP2, which want older packages
	OMP_NUM_THREADS=1 $(TITAN)/bin/pytest tests/integrations/test_torchtitan.py

CORE := tests/contracts tests/rules tests/stages tests/linalg tests/torch_contract tests/distributed tests/optimizer
CORE += tests/execution tests/reliability tests/lab/train/test_loop.py $(wildcard tests/test_*.py)

test-isa: $(VENV)/.dev  ## margins of numeric bounds under several instruction sets, half an hour
	$(BIN)/python -m tests.isa

test-sinks: $(SINKS)/.installed  ## sinks with their real clients, one of which wants other packages
	OMP_NUM_THREADS=1 $(SINKS)/bin/python -m pytest -m "slow or not slow" tests/diagnostics/sinks

test-torch:  ## train, save, resume, shard under another release: make test-torch VERSION=2.7.1
	@test -n "$(VERSION)" || { echo "which release? make test-torch VERSION=2.7.1"; exit 2; }
	test -e build/torch-$(VERSION)/.installed || \
		$(PYTHON) tests/install_torch.py $(VERSION) build/torch-$(VERSION)
	touch build/torch-$(VERSION)/.installed
	OMP_NUM_THREADS=1 build/torch-$(VERSION)/bin/python -m pytest -n 2 --dist loadfile \
		-m "not slow and not gpu" $(CORE)

fuzz: $(VENV)/.dev  ## many random gradients, histories and bytes, anew each time
	FUZZ_EXAMPLES=2000 $(BIN)/pytest -n 2 tests/fuzz

mutants: $(VENV)/.dev  ## a sample of small changes to the code, and which of them no test notices
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation --minutes 15

check: $(VENV)/.dev  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

site: $(VENV)/.docs  ## the documentation as pages, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev  ## an optimizer step, ours and others', in one run; leave the machine alone
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[train,bench]"
	$(BIN)/python -m benchmarks.optimizer_step

gpu-report: $(VENV)/.dev  ## all that is to be known from a GPU, at most ten minutes on one
	$(BIN)/python -m benchmarks.gpu_report

pinned: $(PINNED)/.pinned  ## what CI runs in, every file by its hash: make VENV=$(PINNED) check test

lock: build/lock/.installed  ## requirements-ci.txt anew from constraints.txt, minutes
	CUSTOM_COMPILE_COMMAND="make lock" build/lock/bin/pip-compile --quiet \
		--generate-hashes --allow-unsafe --strip-extras --annotation-style line \
		--no-emit-index-url --no-emit-options --no-emit-find-links \
		--extra train --extra dev --extra docs --build-deps-for editable \
		-c constraints.txt -o requirements-ci.txt pyproject.toml

audit: build/audit/.installed  ## known faults of what CI installs; fails if any package was not looked up
	build/audit/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off \
		-r requirements-ci.txt

sbom: build/sbom/.installed $(VENV)/.dev  ## build/sbom/polarlight.cdx.json: the wheel and all it brings
	rm -rf build/sbom/dist build/sbom/site
	$(BIN)/python -m hatchling build -t wheel -d build/sbom/dist
	$(PYTHON) -m venv --without-pip build/sbom/site
	build/sbom/bin/pip --python build/sbom/site install --disable-pip-version-check --quiet \
		-c constraints.txt $(TORCH)
	build/sbom/bin/pip --python build/sbom/site install --disable-pip-version-check --quiet \
		-c constraints.txt build/sbom/dist/*.whl
	build/sbom/bin/cyclonedx-py environment --mc-type library --pyproject pyproject.toml \
		--output-reproducible --of JSON -o build/sbom/polarlight.cdx.json build/sbom/site

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

$(SINKS)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(SINKS)
	$(SINKS)/bin/pip install --disable-pip-version-check --quiet $(TORCH)
	$(SINKS)/bin/pip install --disable-pip-version-check --quiet \
		-e ".[train,tensorboard,trackio,wandb]" pytest
	touch $@

# A hash is compared only for what is installed anew: from an empty folder, each time.
$(PINNED)/.pinned: requirements-ci.txt constraints.txt pyproject.toml
	rm -rf $(PINNED)
	$(PYTHON) -m venv $(PINNED)
	$(PINNED)/bin/pip install --disable-pip-version-check --quiet \
		--require-hashes -r requirements-ci.txt
	$(PINNED)/bin/pip install --disable-pip-version-check --quiet \
		--no-deps --no-build-isolation -e .
	$(PINNED)/bin/pip check
	cd $(PINNED) && touch .torch .train .dev .docs .pinned

build/lock/.installed: TOOL := pip-tools==7.6.2
build/audit/.installed: TOOL := pip-audit==2.10.1
build/sbom/.installed: TOOL := cyclonedx-bom==7.5.0
build/lock/.installed build/audit/.installed build/sbom/.installed: Makefile
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --disable-pip-version-check --quiet $(TOOL)
	touch $@
