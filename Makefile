# Everything runs in .venv, which is made at first use, and made again only when what it is made from changes.
# Another Python: make test PYTHON=python3.12. Some tests only: make test ARGS="tests/pretraining/test_masking.py -k budget".

export PYTHON ?= python3 python3.13 python3.12 python3.11
plugins := $(wildcard plugins/*/pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help venv lint test test-lowest docs demo demo-methods compat audit constraints clean moved

# What an outer environment sets for its own Python has no place in ours. Which index pip uses stays the user's choice.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE PIP_USER PIP_TARGET PIP_PREFIX PIP_CONSTRAINT STZOO_PLUGINS

help:
	@echo 'make demo         adapt, fine-tune, pre-train and search on real text, in some minutes'
	@echo 'make demo-methods each method for a few steps, exported and searched'
	@echo 'make test         make lint, then every test'
	@echo 'make lint         ruff (format and rules), import-linter and mypy'
	@echo 'make docs         build the documentation into site/'
	@echo 'make test-lowest  every test but those of packaging with the lowest versions of the dependencies'
	@echo 'make compat       load exported models in older sentence-transformers, ONNX and LangChain, without stzoo'
	@echo 'make venv         only set up .venv; the others do so by themselves'
	@echo 'make audit        look for known vulnerabilities in the versions of constraints.txt'
	@echo 'make constraints  write constraints.txt from the newest versions that the projects allow, and'
	@echo '                  constraints-lowest.txt from the lowest'
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

# Three workers keep two cores busy, as some tests wait; one torch thread a worker, and no test that waits for the hub.
WORKERS ?= 3
test test-lowest: export OMP_NUM_THREADS = 1
test test-lowest: export HF_HUB_OFFLINE = 1
test: .venv/made
	@$(MAKE) --no-print-directory -j 2 lint .venv/compiled
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Compiles what the tests import, or each worker would do so. This and lint take one core each, for about as long.
.venv/compiled: .venv/made
	@.venv/bin/python -m pytest --collect-only -q > .venv/compiled 2>&1 || true

test-lowest:
	@.ci/setup .lowest --constraint constraints-lowest.txt -e '.[all,lancedb,mteb,onnx,qdrant,ray,test]' \
	  $(plugins:%/pyproject.toml=-e %)
	.lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  --ignore tests/test_packaging.py $(ARGS)

demo: .venv/made
	.venv/bin/stzoo demo $(ARGS)

demo-methods: .venv/made
	.venv/bin/stzoo demo --methods --output demo-methods $(ARGS)

docs: .venv/made
	.venv/bin/python -m mkdocs build --strict

compat: .venv/made
	.venv/bin/python tests/compat/run.py

audit: .venv/made
	.venv/bin/python -m venv .audit
	.audit/bin/python -m pip install --quiet pip-audit
	.audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

constraints:
	@.ci/constraints
	@.ci/constraints-lowest

clean:
	rm -rf .venv .lowest .audit .compat site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf build dist *.egg-info plugins/*/build plugins/*/dist plugins/*/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
