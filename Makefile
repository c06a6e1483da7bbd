# The two commands to know: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help demo demo-once demo-clean venv system-packages lint format test test-quick fuzz bench clean

help:
	@echo 'make demo        run the whole chain on this machine, with the web UI, until Ctrl-C'
	@echo 'make demo-once   the same, and exit: status 0 only if everything in it is true'
	@echo 'make demo-clean  stop what is left of it and remove its directory'
	@echo 'make test        install what the tests need (Debian packages as root) and run all of them'
	@echo 'make test-quick  only the tests without daemons'
	@echo 'make lint        ruff, mypy, the arrows between the rooms'
	@echo 'make fuzz        the property tests of protocols and parsers, for minutes'
	@echo 'make bench       measure; writes tests/bench/results.json'

demo:
	@PYTHONPATH=include/demo exec "$(PYTHON)" -m airpanda_demo up

demo-once:
	@PYTHONPATH=include/demo exec "$(PYTHON)" -m airpanda_demo once

demo-clean:
	@PYTHONPATH=include/demo exec "$(PYTHON)" -m airpanda_demo clean

venv: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt include/demo/constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(0 if sys.version_info[:2] >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --quiet -c include/demo/constraints.txt -r requirements.txt -r requirements-dev.txt
	@touch $@

system-packages:
	tests/install-system-packages

lint: venv
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -c 'import sys; from importlinter.cli import lint_imports_command as run; sys.path.insert(0, "plugins"); run(["--no-cache"])'

format: venv
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

test: venv system-packages
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-quick: venv
	$(RUN) -m pytest tests/unit tests/architecture tests/contract

fuzz: venv
	AIRPANDA_FUZZ=60 $(RUN) -m pytest -q tests/unit --timeout 1800 \
	    -k "damaged or survives or reads or requests_come or anything or exactly or wrap"

bench: venv
	$(RUN) -m pytest -q tests/bench --bench

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
