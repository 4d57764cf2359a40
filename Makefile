# From a fresh clone to a result: needs Python 3.11 (or later), pip, venv, make and nothing else.
#
#   make demo        evaluate a shipped policy in its environment, for several budgets
#   make test        the quick tests
#   make test-slow   the slow tests
#   make check       format, lint, types and the quick tests
#   make clean       remove what these made
#
# Everything is installed in .venv. It is made again when pyproject.toml or constraints.txt changes.

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check setup clean
.DELETE_ON_ERROR:

# What a user's shell may hold that would put other packages before, or beside, those of .venv.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV

BIN := .venv/bin
READY := .venv/.ready
# More than four processes, each with torch and the simulators in memory, gain little.
SIDE_BY_SIDE := --numprocesses=auto --maxprocesses=4 --dist=worksteal
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

demo: $(READY)
	$(BIN)/gem-policy evaluate pointmaze-umaze --episodes 20 --candidates 1,4,16,64,256

test: $(READY)
	$(BIN)/pytest $(SIDE_BY_SIDE)

test-slow: $(READY)
	$(BIN)/pytest -m slow

check: $(READY)
	$(BIN)/python tests/check.py

setup: $(READY)

# A `python3.11` may be a launcher for a version that is not there, so each name is tried.
# Torch goes in alone: where a smaller build of it is at hand, nothing then replaces that build.
$(READY): pyproject.toml constraints.txt
	@for python in python3.11 python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        $(BIN)/python -m pip --version >/dev/null 2>&1 || $$python -m venv --clear .venv; \
	        exit $$?; \
	    fi; \
	done; \
	echo "Python 3.11 or later is needed, and neither python3.11 nor python3 is one." >&2; exit 1
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find gem_policy wrappers pretrained tests -name __pycache__ -prune -exec rm -rf {} +
