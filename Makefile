# Everything runs in one virtual environment: make install PYTHON=python3.12 VENV=/elsewhere
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Models resident and partitioned, and TRL beside them: see python -m evaluation.bench --help.
BENCH_OPTIONS ?= --zero 0,3 --peer trl
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help install demo test check bench gpu clean

help:
	@echo "make install   a virtual environment in $(VENV) with the tested versions"
	@echo "make demo      distil a tiny student on two ranks and draw the comparison (two cores, no GPU)"
	@echo "make test      all tests"
	@echo "make check     what CI runs before the tests: ruff, ruff format, mypy --strict"
	@echo "make bench     cost of a step by phase: SFT, GKD, PromptKD with random models on two ranks, and TRL's step"
	@echo "make gpu       correctness, cost and memory on this machine's GPUs, into docs/; WHEELS=DIR without network"
	@echo "make clean     remove the environment, caches and what the demo wrote"

install: $(STAMP)

# torch first and alone: see constraints.txt.
$(STAMP): setup.py constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e ".[dev,demo,judge,report,tracking]"
	@touch $@

demo: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m demo.run

# Two processes, a file in one of them, the slow ones first: many tests wait for programs to start.
test: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP)
	@$(PIP) install -c constraints.txt -e ".[bench]"
	@PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 deepspeed --num_gpus 2 --module evaluation.bench $(BENCH_OPTIONS)

# A machine without network that has a torch of its own: WHEELS=DIR has wheels of what it lacks. To fill DIR elsewhere:
#   pip wheel --no-deps -c constraints.txt -w DIR deepspeed rouge-score
#   pip download --no-deps --only-binary=:all: --python-version 3.12 -c constraints.txt -d DIR datasets dill multiprocess \
#     hjson nltk defusedxml pydantic pydantic-core annotated-types typing-inspection
# They go onto the path, not into an environment: one that is made from another environment does not see its packages.
gpu: $(if $(WHEELS),,$(STAMP))
ifdef WHEELS
	@$(PYTHON) -m pip --disable-pip-version-check --quiet install --no-index --no-deps --upgrade --target $(WHEELS)/site $(WHEELS)/*.whl
	@PYTHONPATH="$(abspath $(WHEELS))/site" $(PYTHON) -m evaluation.bench gpu $(GPU_OPTIONS)
else
	@$(BIN)/python -m evaluation.bench gpu $(GPU_OPTIONS)
endif

clean:
	@rm -rf $(VENV) demo/runs demo/report.png build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
