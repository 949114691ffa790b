# The two commands that must never break on a fresh clone: `make run` and `make test`.
PYTHON ?= python3
PORT ?= 8081
VENV := .venv
BIN := $(VENV)/bin
# The tests start hundreds of processes. Each would compile every module again.
unexport PYTHONDONTWRITEBYTECODE
DEV := $(VENV)/.dev-installed
RUN := $(VENV)/.run-installed

.DEFAULT_GOAL := run
.PHONY: help run test test-all install lint lock bench chaos simulate clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

run: $(RUN) ## start everything in one process (PORT=8081)
	PORT=$(PORT) $(BIN)/gateway up

# Lint reads the whole tree, so a part of the tests does not wait for it.
T ?=
# Most tests wait most of the time.
WORKERS ?= $(shell echo $$((3 * $$(nproc 2>/dev/null || echo 2))))
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)
test: $(DEV) $(if $(T),,lint) ## lint and the tests for every change; or a part of them: T=tests/points
	$(PYTEST) $(T)

test-all: $(DEV) $(if $(T),,lint) ## lint and all tests at full size, on SQLite, MariaDB and MySQL; or a part: T=tests/system
	$(PYTEST) --all $(T)

install: $(DEV) ## make .venv with everything for development (PYTHON=python3)

lint: $(DEV) ## ruff, mypy --strict and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ARGS ?=
bench: $(DEV) ## benchmarks in one table; needs MariaDB and Redis (ARGS=--litellm)
	$(BIN)/python -m bench $(ARGS)
	$(BIN)/python -m bench.memory

MINUTES ?= 10
chaos: $(DEV) ## faults at random on servers of its own (MINUTES=10)
	$(BIN)/python -m tests.chaos --minutes $(MINUTES)

SEEDS ?= 0:2000
simulate: $(DEV) ## the simulator over many seeds (SEEDS=0:2000)
	$(BIN)/python -m tests.simulator --seeds $(SEEDS) --coverage

# `--system-site-packages` is not used: what runs is what the lock files say.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The lock files are complete. With `--no-deps` pip does not resolve again: pip 23 (Debian 12) refuses a requirement
# with an extra, such as coverage[toml], in hash mode once there is a version newer than the pin.
# `--only-binary` because an sdist would be built by a build backend that no hash vouches for.
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps
FROM_LOCK := $(PIP_INSTALL) --require-hashes --only-binary :all: -r

# The project itself is built by the setuptools of the lock file: `--no-build-isolation` downloads nothing.
$(RUN): $(VENV)/bin/python requirements.lock pyproject.toml
	$(FROM_LOCK) requirements.lock
	$(PIP_INSTALL) --no-build-isolation -e .
	touch $(RUN)

$(DEV): $(RUN) requirements-dev.lock
	$(FROM_LOCK) requirements-dev.lock
	touch $(DEV)

# uv keeps the pins it finds in the output file; UPGRADE=1 replaces them by the newest versions.
UPGRADE ?=
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
  --no-emit-index-url --no-emit-find-links $(if $(UPGRADE),--upgrade) pyproject.toml --group build
lock: $(DEV) ## write the lock files anew from pyproject.toml (UPGRADE=1: with the newest versions)
	$(COMPILE) -o requirements.lock
	$(COMPILE) --group dev -c requirements.lock -o requirements-dev.lock

clean: ## remove .venv and var
	rm -rf $(VENV) var
