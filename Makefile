# make demo    a small study from nothing to evaluated 3-D masks (about 5 minutes)
# make test    make check, then the tests
# make check   ruff, formatting, mypy
# make results docs/results.md and docs/results/*.md anew from the JSON files in docs/results
# make setup   only the set-up that each of them does first: .venv with everything in it
# make clean   removes .venv, caches and demo-output
#
# make PYTHON=/path/to/python3.12 ...   to choose the Python that .venv is made from
# make test PYTEST_ARGS="-k geometry"   to pass on to pytest

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
VENV := .venv
STAMP := $(VENV)/.installed
TOO_OLD := sys.version_info < (3, 11)

.PHONY: help setup demo test check results clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(STAMP)

demo: $(STAMP)
	@$(VENV)/bin/python -m medseg demo -o demo-output

check: $(STAMP)
	@echo "check: ruff, formatting, mypy"
	@$(VENV)/bin/python -m ruff check --quiet .
	@$(VENV)/bin/python -m ruff format --quiet --check . || \
	  { echo "these files are not formatted, run $(VENV)/bin/ruff format ."; $(VENV)/bin/python -m ruff format --check .; exit 1; }
	@$(VENV)/bin/python -m mypy

test: check
	@$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS) || { echo "make test: FAILED"; exit 1; }
	@echo "make test: passed (ruff, formatting, mypy, pytest)"

results: $(STAMP)
	@$(VENV)/bin/python pipelines/make_results.py

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache

# The environment. .installing marks an installation that did not end: the next one starts from nothing,
# because a package that was unpacked half looks whole to pip. A .venv without a working Python and pip is remade too.
$(STAMP): pyproject.toml constraints.txt
	@if [ -e $(VENV)/.installing ] || ! $(VENV)/bin/python -c 'import sys, pip; sys.exit($(TOO_OLD))' >/dev/null 2>&1; then \
	  command -v "$(PYTHON)" >/dev/null 2>&1 || { echo "error: no $(PYTHON) found; install Python 3.11 or newer" \
	    "(Debian, Ubuntu: apt install python3 python3-venv) or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	  "$(PYTHON)" -c 'import sys; sys.exit($(TOO_OLD))' 2>/dev/null || { echo "error: $(PYTHON) is" \
	    "$$("$(PYTHON)" --version 2>&1 | head -n 1), medseg needs Python 3.11 or newer; install one and name it:" \
	    "make PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	  "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments" \
	    "(its venv or ensurepip module is missing); Debian, Ubuntu: apt install python3-venv, or name another Python:" \
	    "make PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	  echo "set-up: making $(VENV) with $$("$(PYTHON)" --version 2>&1)"; \
	  "$(PYTHON)" -m venv --clear $(VENV) || { echo "error: $(PYTHON) could not make $(VENV); its message stands above" >&2; exit 2; }; \
	fi
	@echo "set-up: installing medseg and what it needs from PyPI into $(VENV): torch (CUDA build, runs on CPU too),"
	@echo "        torchvision, MONAI, readers, test tools; a download of about 3 GB, about 6 GB on disk; once, some minutes"
	@touch $(VENV)/.installing
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt -e '.[test]' || \
	  { echo "error: pip could not install, its message stands above; check network and disk space, then run make again" >&2; exit 2; }
	@rm $(VENV)/.installing
	@touch $@
	@echo "set-up: done"
