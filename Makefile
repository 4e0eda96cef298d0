# Each target sets up its own environment in .venv; Python 3.11 or newer is all that must be there.
# Where packages come from is pip's configuration: PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf.
#
#   make demo       train, quantize and compare one network, about 3 minutes on 2 cores
#   make test       lint, types, doctests and tests
#   make test-slow  the tests that take long
#   make lint       lint and types only
#   make renew      write what is taken from the code: the snapshot of the API, two pages
#   make clean      remove the environment and the caches
#
# Options: PYTHON=python3.12 chooses the interpreter, WORKERS=4 the number of test processes.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := qcore qcore_observers qcore_backends plugins
WORKERS ?= 2
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)

# Each test process has one thread of its own, else they fight for the cores.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help demo test test-slow lint renew clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   make/make/p' Makefile

demo: $(READY)
	$(BIN)/qcore run recipes/digits-resnet18-int8.toml

test: lint
	$(PYTEST) -m "not slow" --doctest-modules $(PACKAGES) tests

test-slow: $(READY)
	$(PYTEST) -m slow tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

renew: $(READY)
	$(BIN)/python tests/snapshots/public_api.py
	$(BIN)/python docs/write_reference.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Made anew when what it is made from changes, and when its interpreter has gone.
$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -c 'import pip' 2>/dev/null && exit 0; \
	for python in $(CANDIDATES); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "$$python -m venv --clear $(VENV)"; \
			exec $$python -m venv --clear $(VENV); \
		fi; \
	done; \
	echo "qcore needs Python 3.11 or newer; tried: $(CANDIDATES)." \
		"Install it, or say where it is: make PYTHON=/path/to/python" >&2; \
	exit 1
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
