# Every target says what it does after `##`; `make` alone prints them.

PY := .venv/bin/python
STORE ?= store
export DO_NOT_TRACK := 1
export NO_ALBUMENTATIONS_UPDATE := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo study smoke bench test test-all test-gpu lint format check lock docs docs-check clean

help: ## Print the targets and what they do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv from requirements.lock (minutes the first time, a second after that)
	@bash scripts/setup.sh

demo: setup ## Run the emoji recipe from links to report in ./store (STORE=folder changes it)
	.venv/bin/racm3 run emoji --store $(STORE)

smoke: setup ## Run the whole DAG on a few hundred emoji
	.venv/bin/racm3 run smoke --store $(STORE)

bench: setup .bench/ready ## Measure sampling and training beside plain peers (about four minutes)
	OMP_NUM_THREADS=1 $(PY) benchmarks/sampling.py
	OMP_NUM_THREADS=1 PYTHONPATH=.bench $(PY) benchmarks/training.py

.bench/ready: benchmarks/requirements.txt | setup
	rm -rf .bench
	$(PY) -m pip install -q --no-deps --require-hashes --target .bench -r benchmarks/requirements.txt
	touch $@

test: setup ## Run the tests (all but those marked slow or gpu)
	$(PY) -m pytest -m "not slow and not gpu"

test-all: setup ## Run the slow tests too
	$(PY) -m pytest -m "not gpu"

test-gpu: setup ## Run the tests that need a CUDA device
	$(PY) -m pytest -m gpu

lint: setup ## Check format, rules, types, import contracts and generated documents
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	@$(MAKE) --no-print-directory docs-check

format: setup ## Format the code and mend what ruff can mend
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

check: lint test ## What CI runs: lint, then test

lock: setup ## Compile requirements.lock anew from pyproject.toml and overrides.txt
	.venv/bin/uv pip compile pyproject.toml --extra demo --extra dev --override overrides.txt \
		--generate-hashes --no-emit-index-url --no-annotate --no-header \
		--python-version 3.11 -o requirements.lock

docs: setup ## Write docs/schemas.md from the table definitions, docs/results.md from its numbers
	$(PY) -m storage_schemas.markdown docs/schemas.md
	.venv/bin/racm3 study emoji-study --page docs/results.md --page-only

study: setup ## Run emoji-study, or go on with it (hours), and write docs/results.md
	.venv/bin/racm3 study emoji-study --store $(STORE) --page docs/results.md

docs-check: setup ## Fail when docs/schemas.md is not what `make docs` would write
	$(PY) -m storage_schemas.markdown docs/schemas.md --check

clean: ## Remove caches; .venv and the store stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find racm3 storage_schemas pipelines flows tests -name __pycache__ -prune -exec rm -rf {} +
