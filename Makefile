# The two commands that must never break on a fresh clone: `make run` and `make test`.
PYTHON ?= python3
PORT ?= 8081
VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.dev-installed
RUN := $(VENV)/.run-installed

.PHONY: run test test-again install lint lock bench chaos simulate clean

run: $(RUN)
	PORT=$(PORT) $(BIN)/gateway up

test: $(DEV) lint
	$(BIN)/python -m pytest

# What failed the last time, alone.
test-again: $(DEV)
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none

install: $(DEV)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(DEV)
	$(BIN)/python -m bench.submit
	$(BIN)/python -m bench.poll
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.push

MINUTES ?= 10
chaos: $(DEV)
	$(BIN)/python -m tests.chaos --minutes $(MINUTES)

SEEDS ?= 0:2000
simulate: $(DEV)
	$(BIN)/python -m tests.simulator --seeds $(SEEDS) --coverage

# `--system-site-packages` is not used: what runs is what the lock files say.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(RUN): $(VENV)/bin/python requirements.lock pyproject.toml
	if command -v uv >/dev/null; then \
	  uv pip install -q --python $(BIN)/python --require-hashes -r requirements.lock && \
	  uv pip install -q --python $(BIN)/python --no-deps -e . ; \
	else \
	  $(BIN)/python -m pip install -q --require-hashes -r requirements.lock && \
	  $(BIN)/python -m pip install -q --no-deps -e . ; \
	fi
	touch $(RUN)

$(DEV): $(RUN) requirements-dev.lock
	if command -v uv >/dev/null; then \
	  uv pip install -q --python $(BIN)/python --require-hashes -r requirements-dev.lock ; \
	else \
	  $(BIN)/python -m pip install -q --require-hashes -r requirements-dev.lock ; \
	fi
	touch $(DEV)

lock:
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-header pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-header pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf $(VENV) var
