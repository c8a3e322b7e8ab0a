# One command each: demo, test, check, bench. All of them set up what they need in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: demo test check bench clean help

help:
	@echo "make demo    train a small model on this machine's own Python documentation, all stages (6 to 12 minutes on two cores)"
	@echo "make test    run the tests"
	@echo "make check   format, lint and types"
	@echo "make bench   measure against peers (installs each peer into an environment of its own)"

# torch comes first and alone, in the pinned version: asked for by another package it may arrive as a newer build with
# gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,check]'
	@touch $@

demo: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" examples/demo.sh demo

# The files are shared out over the cores: what tests wait for is mostly another process.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" benchmarks/run.sh

clean:
	rm -rf $(VENV) demo dist benchmarks/.envs
