# The commands of this project. `make help` lists them; the ones that need .venv make it first, from lock.txt.

# Which torch goes into .venv when none is there yet. A CUDA build: make TORCH_INDEX=<address of PyTorch's wheels for it>.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# 1: take whatever torch pip finds, also a CUDA build (several GB) on a machine where no NVIDIA device is seen.
TORCH_ANY ?=
# Which Python makes .venv; empty: the first of python3, python3.13, python3.12, python3.11 that is at least 3.11.
PYTHON ?=
# A clone of the published Contriever code: make bench REFERENCE=CLONE runs it beside ours.
REFERENCE ?=
# Further arguments for pytest and the benchmarks: make test ARGS='-k artifact'.
ARGS ?=

export TORCH TORCH_INDEX TORCH_ANY PYTHON
BIN := .venv/bin
# One thread a process: the tests start several, and two pools of threads on the same cores make both slow.
# The lock holds every optional library: a test that would be left out for want of one fails.
PYTEST = MCONTRIEVER_NO_SKIPS=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest --durations=10

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-quick test-slow check fix bench bench-gpu lock

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

.venv/.installed: lock.txt pyproject.toml scripts/install.sh
	@bash scripts/install.sh

quickstart: .venv/.installed ## the whole road on the sample: prepare, pretrain, fine-tune, evaluate, search
	@$(BIN)/python scripts/quickstart.py $(ARGS)

test: check test-quick test-slow ## everything: checks, quick tests, slow tests

test-quick: .venv/.installed ## the tests that start no other process
	$(PYTEST) -m 'not slow' $(ARGS)

test-slow: .venv/.installed ## the tests that start real processes: DeepSpeed, torchrun, a wheel build
	$(PYTEST) -m slow $(ARGS)

check: .venv/.installed ## lint, formatting and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: .venv/.installed ## mend what lint and formatting can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.installed ## ours against peers on the CPU: a table and bench.json
	$(BIN)/python scripts/bench.py $(if $(REFERENCE),--reference $(REFERENCE)) $(ARGS)

bench-gpu: .venv/.installed ## the same on a GPU
	$(BIN)/python scripts/bench.py --gpu $(ARGS)

lock: ## resolve pyproject.toml anew into lock.txt (UPGRADE=1: newest versions)
	@bash scripts/lock.sh

# `test` runs its three parts in this order, whatever -j says.
.NOTPARALLEL:
