# Every target installs what it needs into one virtual environment. PYTHON is the interpreter that creates it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: help install demo paper ci lint test docs slow parity format bench clean
help:
	@echo "make demo     LoTTS against Best-of-N on the embedded models, through Ray; writes out/demo/index.html"
	@echo "make paper    the paper's tables on the embedded models, reduced; writes out/paper/index.html"
	@echo "make ci       everything that continuous integration runs: lint, docs, test"
	@echo "make lint     ruff and mypy --strict"
	@echo "make test     the tests, without the slow ones"
	@echo "make docs     the documentation site, in strict mode; writes site/index.html"
	@echo "make slow     the slow tests"
	@echo "make parity   native verifiers against the original packages, which are installed first (2 GB)"
	@echo "make format   let ruff fix and format the code"
	@echo "make bench    the framework against bare networks, pipelines and loops, as one table (ten minutes)"
	@echo "make install  the virtual environment in $(VENV), with the tested versions"
	@echo "make clean    remove the virtual environment and all caches"

# Reinstalled only when the requirements change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,docs,serve]'
# Of brisque only a table is read; its requirements would have to be compiled.
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps brisque
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/lotts-search demo $(ARGS)

paper: $(STAMP)
	$(BIN)/python examples/paper/run.py $(ARGS)

ci: lint docs test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p lotts_search

# Files run side by side, one for each of two cores or more; all computing is on one thread.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu" $(ARGS)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not parity" $(ARGS)

# FULL=full compares checkpoints of the published sizes, too.
parity: $(STAMP)
	$(BIN)/lotts-search verifier-env image-reward-package
	$(BIN)/lotts-search verifier-env hpsv2-package
	LOTTS_PARITY=$(FULL) $(BIN)/python -m pytest -m parity -s tests/verifiers/test_parity.py $(ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/lotts-search bench ratios $(ARGS)

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
