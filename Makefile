# Every target sets up .venv on first use: `make quickstart` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TEST_READY := $(VENV)/ready-test
# Tests start many processes: without bytecode on disk each compiles every module again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-fast check format

quickstart: $(READY)
	$(BIN)/rft-jax run experiments/arithmetic.py

test: check
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Quick: fewer examples of each law, and XLA optimizes nothing; in `test` it does for the tests that
# tests/conftest.py names.
test-fast: $(TEST_READY)
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -q -m "not slow" --hypothesis-profile fast -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

check: $(TEST_READY)
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy --no-error-summary

format: $(READY)
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format --quiet

# Pinned versions, then the package itself as an editable install; again when either file changes.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	@echo "Installing into $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# PyTorch and transformers are references of the tests alone: no run needs them.
$(TEST_READY): $(READY) requirements-test.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.lock
	@touch $@
