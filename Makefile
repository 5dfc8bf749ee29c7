# One command each. The virtual environment is made on first use and remade when versions change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup demo test test-slow test-hub check completions docs bench clean

help:
	@echo "make demo         tag the clips in tests/data/clips with the embedded model"
	@echo "make test         run the test suite"
	@echo "make test-slow    run the long tests as well"
	@echo "make test-hub     test the Hub with the oldest and the newest huggingface_hub"
	@echo "make check        ruff, pyright and import-linter"
	@echo "make completions  regenerate completions/"
	@echo "make docs         regenerate the generated parts of README.md and docs/"
	@echo "make bench        print speed ratios against peers"

# torch goes first and pinned: on its own pip would fetch a CUDA build of several gigabytes.
$(VENV)/pip: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools
	touch $@

$(VENV)/run: $(VENV)/pip pyproject.toml $(wildcard audiossl/kernels/*.cpp audiossl/kernels/*.h)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/dev: $(VENV)/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

$(VENV)/bench: $(VENV)/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[bench]'
	touch $@

setup: $(VENV)/dev

demo: $(VENV)/run
	$(BIN)/audiossl tag tests/data/clips --format table

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 -rfEs

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 -rfEs -m 'slow or not slow'

test-hub: $(VENV)/dev
	bash tests/hub_versions.sh

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

completions: $(VENV)/run
	$(BIN)/audiossl completions bash > completions/audiossl.bash
	$(BIN)/audiossl completions zsh > completions/_audiossl
	$(BIN)/audiossl completions fish > completions/audiossl.fish

docs: $(VENV)/run
	$(BIN)/python tests/generate_docs.py

bench: $(VENV)/bench
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) build dist *.egg-info runs
