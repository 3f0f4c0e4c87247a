# `make quickstart` and `make test` do their own set-up; README.md has the same steps by hand.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed
# Two files of tests at a time: those that start engines wait for much of their time, for nodes to be lost and workers to end.
PROCESSES := 2
PYTEST := $(BIN)/pytest --durations=10 -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# A driver outside of the virtual environment's bin still finds its tools (ninja, ray).
export PATH := $(CURDIR)/$(BIN):$(PATH)
# With this variable, every process of a run or a test compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test fast lint install bench chaos toy-model cluster cluster-down lock clean

quickstart: $(INSTALLED)  ## from prompts to report on a small real model, within seven minutes on two cores
	$(BIN)/ssd-ray run quickstart

test: lint  ## lint, types, and every test, the real engines included
	$(PYTEST)

fast: $(INSTALLED)  ## tests of at most a few seconds each, without engines
	$(PYTEST) -m "not real and not slow"

lint: $(INSTALLED)  ## ruff and mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)  ## .venv from the lock, CPU build

$(INSTALLED): requirements/cpu.lock requirements/torch_cpu.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3"; exit 1; }
	@echo "installing into .venv: about 3.6 GB, a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python requirements/torch_cpu.py
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/cpu.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

bench: $(INSTALLED)  ## every benchmark; figures as JSON in benchmarks/figures
	mkdir -p benchmarks/figures
	test -d build/trl/trl || $(BIN)/python -m pip install --quiet --no-deps --target build/trl trl==1.16.0
	for name in startup loading_memory planner grading grading_at_size sampling sampling_at_size sampling_kills slow_storage scale_out loss_memory theory probe forecast training checkpointing fixed_point view quickstart; do \
	  $(BIN)/python benchmarks/$$name.py --out benchmarks/figures/$$name.json || exit 1; done

toy-model: $(INSTALLED)  ## the paper's toy as a real model through the pipeline, against its known answer
	mkdir -p benchmarks/figures
	$(BIN)/python benchmarks/toy_model.py --out benchmarks/figures/toy_model.json

chaos: $(INSTALLED)  ## every case of the chaos table; rows on record are kept
	mkdir -p benchmarks/figures
	$(BIN)/python benchmarks/chaos.py --keep build/chaos --out benchmarks/figures/chaos.json

cluster: $(INSTALLED)  ## a double of a KubeRay cluster on this machine, with k8s/overlays/local applied
	$(BIN)/python -m tests.kube up --overlay local

cluster-down: $(INSTALLED)  ## end it, and everything in it
	$(BIN)/python -m tests.kube down

# Every line of a lock would repeat the platform of pyproject.toml.
PLATFORM := (; python_full_version < '3.14'|) and platform_machine == 'x86_64' and sys_platform == 'linux'
lock:  ## resolve cpu.in and the extra gpu again (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --no-emit-package torch \
	  requirements/cpu.in --override requirements/overrides.txt | grep -v "'never'" | sed -E "s/ ?$(PLATFORM)//" > requirements/cpu.lock
	echo '# For Linux on x86-64, CPython 3.11 to 3.13, CUDA 13; `make lock` writes it.' > requirements/gpu.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --extra gpu pyproject.toml | sed -E "s/ ?$(PLATFORM)//" >> requirements/gpu.lock
	$(BIN)/python requirements/record.py
	$(BIN)/python requirements/grader.py

clean:  ## remove the environment, runs and caches
	rm -rf .venv runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis benchmarks/figures
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
