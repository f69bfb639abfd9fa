PYTHON ?= python

.PHONY: help install test test-all fuzz lint format types ci

help:
	@echo "install   this package and the tools to work on it, into the current environment"
	@echo "test      the tests, on two cores"
	@echo "test-all  all tests, the slow ones included, compiled as users do"
	@echo "fuzz      the fuzz tests for FUZZ=N new examples each, 2,000 if not said"
	@echo "lint      ruff        format    ruff, writing the changes"
	@echo "types     mypy        ci        lint, types and test"

install:
	$(PYTHON) -m pip install -e '.[dev]'

test:
	$(PYTHON) -m pytest -n 2 --dist loadfile

test-all:
	DREAMER_TEST_COMPILER=default $(PYTHON) -m pytest -m ''

fuzz:
	FUZZ=$(or $(FUZZ),2000) $(PYTHON) -m pytest -m '' tests/fuzz

lint:
	$(PYTHON) -m ruff check .

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types:
	$(PYTHON) -m mypy

ci: lint types test
