# Everything runs in .venv, which is made at first use, and made again only when what it is made from changes.
# Another Python: make test PYTHON=python3.12. Some tests only: make test ARGS="tests/pretraining/test_masking.py -k budget".

export PYTHON ?= python3 python3.13 python3.12 python3.11
plugins := $(wildcard plugins/*/pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help venv lint test docs demo compat constraints clean moved

# What an outer environment sets for its own Python has no place in ours. Which index pip uses stays the user's choice.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_CONSTRAINT STZOO_PLUGINS

help:
	@echo 'make demo         pre-train, fine-tune, export and search on real text, in some minutes'
	@echo 'make test         make lint, then every test'
	@echo 'make lint         ruff (format and rules), import-linter and mypy'
	@echo 'make docs         build the documentation into site/'
	@echo 'make compat       load exported models in older sentence-transformers, ONNX and LangChain, without stzoo'
	@echo 'make venv         only set up .venv; the others do so by themselves'
	@echo 'make constraints  write constraints.txt anew, from the newest versions that the projects allow'
	@echo 'make clean        remove .venv and whatever else make made, but no models'

venv: .venv/made

# A checkout that was copied or moved with its .venv would go on running the code of the old place.
ifneq "$(shell cat .venv/made 2>/dev/null)" "$(CURDIR)"
.venv/made: moved
endif

.venv/made: Makefile .ci/setup constraints.txt pyproject.toml $(plugins)
	@.ci/setup .venv --constraint constraints.txt -e '.[dev]' $(plugins:%/pyproject.toml=-e %)
	@pwd -P > .venv/made

lint: .venv/made
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m ruff check
	.venv/bin/lint-imports
	.venv/bin/python -m mypy

# A worker a core of a small machine, one torch thread a worker, and no test that waits for the hub.
test: export OMP_NUM_THREADS = 1
test: export HF_HUB_OFFLINE = 1
test: lint
	.venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

demo: .venv/made
	.venv/bin/stzoo demo $(ARGS)

docs: .venv/made
	.venv/bin/python -m mkdocs build --strict

compat: .venv/made
	.venv/bin/python tests/compat/run.py

constraints:
	@.ci/constraints

clean:
	rm -rf .venv .compat site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf build dist *.egg-info plugins/*/build plugins/*/dist plugins/*/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
