# One virtual environment for everything; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: help install demo paper test slow lint format bench clean
help:
	@echo "make demo    LoTTS against Best-of-N on the embedded model, through Ray; writes out/demo/index.html"
	@echo "make paper   which findings of the paper hold on the embedded model, reduced; writes out/paper/index.html"
	@echo "make test    the tests, without the slow ones"
	@echo "make slow    the slow tests"
	@echo "make lint    ruff and mypy --strict"
	@echo "make bench   throughput of the engine and the pools"
	@echo "make install the virtual environment in $(VENV)"

# Installed anew only when the requirements change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/lotts-search demo $(ARGS)

paper: $(STAMP)
	$(BIN)/python examples/paper/run.py $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not gpu" $(ARGS)

slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow" $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p lotts_search

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@set -e; for program in benchmarks/[a-z]*.py; do echo "== $$program"; $(BIN)/python $$program $(ARGS); done

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
