# Each target sets up what it needs in .venv; PYTHON=python3.12 make test takes another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long lint bench format clean

demo: .venv/.installed            ## the bundled tiny BLIP-2 on all eight tasks, offline
	$(BIN)/python -m evalkit

test: .venv/.tested               ## every test of less than some minutes
	$(BIN)/python -m pytest -n auto -q -m "not long"

test-long: .venv/.tested          ## the others: SPICE of 5,000 real captions, more variants of lost machines
	$(BIN)/python -m pytest -q -m long

lint: .venv/.tested               ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.tested             ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.tested              ## what is claimed about speed, measured here
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/.tested: .venv/.installed
	$(BIN)/pip install -q -c constraints.txt -e ".[test]"
	touch $@
