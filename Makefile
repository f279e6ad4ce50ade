# Every command of the project. `make help` lists them; each sets up .venv first, if that is not done yet.
#
#   make test PYTHON=python3.12     create .venv with this interpreter (3.11 or newer)
#   make test RUN=python3           use an environment that is already there, and no .venv
#   make test NEURALMEM_BUILD=none  compile nothing (also cpu or cuda: that, or fail; see docs/native.md)

PYTHON ?= python3
JOBS ?= 2
STAMP := .venv/.installed
ifdef RUN
  READY :=
else
  RUN := .venv/bin/python
  READY := $(STAMP)
endif

# The kernels for this machine's CPU, compiled anew when their sources change. Without a compiler there is one line of
# warning and no file, and everything runs in Python. A library that has CUDA kernels already is kept.
NATIVE := neuralmem/_C.so
SOURCES := $(shell find cuda -name tests -prune -o -type f -print) neuralmem/build.py neuralmem/toolchain.py
export NEURALMEM_BUILD

# Two test processes of one thread each: faster than the reverse, and the same numbers on every machine.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(RUN) -m pytest -q

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup native native-cuda demo demo-baseline test test-eval soak test-gpu record-gpu check format clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv and install everything

$(STAMP): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) found; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) --version) is too old, neuralmem needs 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	NEURALMEM_BUILD=none .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(NATIVE): $(SOURCES) | $(READY)
	$(RUN) -m neuralmem.build --skip-cuda

native: $(READY) $(NATIVE) ## compile the CPU kernels (demo and test do)

native-cuda: $(READY) ## compile the CPU and CUDA kernels
	$(RUN) -m neuralmem.build --mode cuda

demo: $(READY) $(NATIVE) ## train the quickstart model, then print its needle table and draw the heat map
	$(RUN) train.py --config configs/quickstart.yaml
	$(RUN) eval.py niah --checkpoint runs/quickstart

demo-baseline: $(READY) $(NATIVE) ## the same with a sliding-window Transformer of equal size
	$(RUN) train.py --config configs/quickstart_baseline.yaml
	$(RUN) eval.py niah --checkpoint runs/quickstart_baseline

test: $(READY) $(NATIVE) ## run the tests (11 to 21 minutes on the two cores that it was tried on)
	$(PYTEST) -n $(JOBS) --dist worksteal

test-eval: $(READY) $(NATIVE) ## run the tests against lm-evaluation-harness, which .venv-eval gets beside the rest
	test -x .venv-eval/bin/python || $(PYTHON) -m venv .venv-eval
	NEURALMEM_BUILD=none .venv-eval/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e '.[eval]'
	$(ONE_THREAD) .venv-eval/bin/python -m pytest -q -rs tests/hf/test_lm_eval.py

soak: $(READY) $(NATIVE) ## run the long tests, and write down what came out
	$(ONE_THREAD) $(RUN) benchmarks/soak.py --jobs $(JOBS)

test-gpu: native-cuda ## run the tests that need a CUDA device (and torch, pytest, einops, safetensors only)
	NEURALMEM_REQUIRE_GPU=1 $(PYTEST) -m gpu -rs -W "ignore:Failed to initialize NumPy" tests/ops tests/native

record-gpu: test-gpu ## run them, then enter this GPU into neuralmem/conformance.json
	$(RUN) -m tests.native.record

check: $(READY) ## lint, format, types and architecture (what pre-commit runs)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(PYTEST) tests/test_architecture.py

format: $(READY) ## rewrite the sources in the project's format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv .venv-eval build neuralmem/_C.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
