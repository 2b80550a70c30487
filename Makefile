# The two commands: `make report` and `make test`. Both create .venv on first use and start at once after that.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# ruff does not read setup.cfg, where everything else is set
RUFF_FLAGS := --isolated --line-length 120 --target-version py310
RUFF_RULES := --select E,F,I,UP,B,SIM,RUF --ignore RUF001,RUF002,RUF003
SOURCES := pyhessian_spectra tests examples benchmarks docs
# one thread is faster than two for networks as small as the tests' and the demo's, and repeats to the last bit
SMALL := OMP_NUM_THREADS=1

.PHONY: report test check format docs clean

report: $(VENV)/core
	$(SMALL) $(BIN)/pyhessian-spectra demo --out report --force

test: $(VENV)/test
	$(SMALL) $(BIN)/python -m pytest

check: $(VENV)/test docs
	$(BIN)/ruff format $(RUFF_FLAGS) --check $(SOURCES)
	$(BIN)/ruff check $(RUFF_FLAGS) $(RUFF_RULES) $(SOURCES)
	$(BIN)/mypy
	$(SMALL) $(BIN)/python -m pytest

format: $(VENV)/test
	$(BIN)/ruff format $(RUFF_FLAGS) $(SOURCES)
	$(BIN)/ruff check $(RUFF_FLAGS) $(RUFF_RULES) --fix $(SOURCES)

docs: $(VENV)/docs
	$(SMALL) $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

$(VENV)/core: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "creating $(VENV): this takes a minute or two, once"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/test: $(VENV)/core
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/docs: $(VENV)/core
	$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) report docs/_build build *.egg-info
