# Every command sets itself up on a fresh machine: .venv, then torch, then this package. A second call is instant.
# GNU make, POSIX sh; needs no compiler, no triton and no GPU.

PYTHON ?= python3
VENV ?= .venv
# What every install holds to, the isolated builds of packages too. make test CONSTRAINTS= takes the newest versions.
CONSTRAINTS ?= constraints.txt
# On Linux, the torch of PyPI brings gigabytes of CUDA libraries. TORCH may hold any arguments of `pip install`, so a
# machine without a GPU can ask for the CPU wheel: PyTorch's installation page gives the arguments for it, which go into
# TORCH. CONSTRAINTS names its version. What is installed first is kept by what follows.
TORCH ?= torch
# What tests and checks need beside the package: extras of setup.py.
EXTRAS ?= test,dev,bench,gguf,megatron,serve
# Passed on to the command: make train ARGS="--optim.lr 1e-3", make test ARGS="tests/data -k pack"
ARGS ?=
# Where make bench writes.
RESULTS ?= runs/bench

BIN := $(VENV)/bin
# By the environment, for of its command line pip tells isolated builds nothing: those of an old pip read the first
# variable, from 26 on only the second. Eager: what was installed with other constraints becomes what would be now.
PIP := $(if $(CONSTRAINTS),PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS)) $(BIN)/python -m pip \
	install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager

.PHONY: help train test check smollm2 test-gpu bench test-versions verify-kernels verify-exports verify-faults verify-numbers verify-sampling verify-ppo-optimum verify-megatron-ppo FORCE
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /make \1|/p' Makefile | while IFS='|' read -r name text; do \
		printf '%-14s %s\n' "$$name" "$$text"; done

train: $(VENV)/.package ## train a small reward model on the shipped human preferences (a few minutes on a CPU)
	$(BIN)/torchrun --standalone --nproc_per_node 1 rmfast/train.py configs/quickstart.yaml $(ARGS)

test: $(VENV)/.dev ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

# Attention on long prompts first and in a process of its own: what reads a wrong address there ends the process.
test-gpu: $(VENV)/.dev ## run the kernels' tests and those marked gpu on a GPU, without the interpreter
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { \
		echo "error: torch finds no CUDA device; make test runs the kernels in Triton's interpreter" >&2; exit 1; }
	$(BIN)/python -m pytest tests/kernels/test_long_prefixes.py
	$(BIN)/python -m pytest tests/kernels tests/models tests/parallel/test_graphs.py tests/parallel/test_residence.py \
		tests/rollout/test_steps.py tests/test_csrc.py $(ARGS)

test-versions: $(VENV)/.dev ## run what depends on each library with its oldest and newest version (hours); docs/versions.md
	@code=0; $(BIN)/python benchmarks/versions.py $(ARGS) || code=$$?; $(BIN)/python benchmarks/figures.py && exit $$code

bench: $(VENV)/.dev ## time every kernel, then whole training steps (tiny sizes without a GPU); RESULTS=folder
	@mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/kernels/run.py --json $(RESULTS)/kernels.json --plots $(RESULTS)
	$(BIN)/python -m benchmarks.steps.compare --breakdown --json $(RESULTS)/steps.json

verify-kernels: $(VENV)/.dev ## every Triton kernel compiled for sm_80 and sm_90, without a GPU: no spills, no worse code
	$(BIN)/python tests/kernels/aot.py $(ARGS)

verify-exports: $(VENV)/.dev ## exports of every family, read by transformers 4.57, 5.17 and 5.24: same ids and scores
	$(BIN)/python -m benchmarks.exports.verify --json benchmarks/results/exports_transformers.json

verify-numbers: $(VENV)/.dev ## short runs of every task and engine: the same bits as the committed ones, whole and resumed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/same_numbers.py $(ARGS)

verify-sampling: smollm2 ## samples of a real decoder: greedy ones are generate's, all are the same in any batch (an hour)
	$(BIN)/python -m benchmarks.sampling.verify --data configs/quickstart/test.jsonl.gz \
		--model models/SmolLM2-135M-Instruct --json benchmarks/results/sampling_verified.json $(ARGS)

verify-faults: $(VENV)/.dev ## kills, damaged files, signals, full disks: runs go on to the same bits or end in a line (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults $(ARGS)

verify-ppo-optimum: $(VENV)/.dev ## tiny policies reach their known optimum, planted mistakes do not (under an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ppo_optimum --json benchmarks/results/ppo_optimum.json $(ARGS)

verify-megatron-ppo: $(VENV)/.dev ## PPO over tensor, sequence, pipeline and data ranks is one native process's (minutes, gloo)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.megatron_ppo --json benchmarks/results/megatron_ppo.json $(ARGS)

check: $(VENV)/.dev ## ruff, mypy and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

smollm2: $(VENV)/.gguf ## prepare a real decoder (135M parameters, 93 MB to download) in models/SmolLM2-135M-Instruct
	$(BIN)/python benchmarks/prepare_smollm2.py $(ARGS)

# Rewritten where the answer is another, which makes all that follows out of date.
$(VENV)/.asked: FORCE
	@mkdir -p $(VENV)
	@echo 'CONSTRAINTS=$(CONSTRAINTS) TORCH=$(TORCH) EXTRAS=$(EXTRAS)' | cmp -s - $@ || \
		echo 'CONSTRAINTS=$(CONSTRAINTS) TORCH=$(TORCH) EXTRAS=$(EXTRAS)' > $@

# Names the version that it installed: a constraint of what follows.
$(VENV)/.torch: $(VENV)/.asked $(wildcard $(CONSTRAINTS))
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: $(PYTHON) not found: install Python 3.11 to 3.13, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "error: $$($(PYTHON) --version 2>&1) is not 3.11 to 3.13: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV) (once; some minutes)"
	@$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $@

$(VENV)/.package: $(VENV)/.torch setup.py pyproject.toml
	$(PIP) --constraint $(VENV)/.torch --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(PIP) --constraint $(VENV)/.torch --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.gguf: $(VENV)/.package
	$(PIP) --constraint $(VENV)/.torch --editable '.[gguf]'
	@touch $@
