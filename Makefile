# `make` alone prints what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SUPPLY := build/supply
# What a change of the contract is held against: the last release, else main.
AGAINST ?= $(shell git describe --tags --abbrev=0 2>/dev/null || echo main)

BENCH := PYTHONPATH=.:generated python -m bench

# Tests on several processes; a core that waits for sleeps and databases can take more than one.
WORKERS ?= logical
PYTEST := pytest --numprocesses $(WORKERS)

export PATH := $(abspath $(BIN)):$(abspath build/bin):$(PATH)

.PHONY: help run test check check-slow check-tools interop generate generated lint types breaking proof mutants bench bench-peers bench-check licences sbom audit clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

run: $(READY) ## Serve on 127.0.0.1:50051, with a private PostgreSQL
	@exec python -m server $(ARGS)

test: $(READY) ## Run the tests that need Python and PostgreSQL only: at most 3 minutes on two cores
	$(PYTEST) --dist worksteal -m "not tool and not slow and not fault" $(ARGS)

check: generated lint breaking types test check-slow check-tools ## Everything CI runs: at most 20 minutes

check-slow: $(READY)
	$(PYTEST) --dist worksteal -m "(slow or fault) and not tool"

check-tools: $(READY)
	$(PYTEST) --dist loadfile -m tool

interop: $(READY) ## Run the clients in Go, Node, Java and Rust that can be built here
	pytest tests/interop $(ARGS)

generate: $(READY) ## Make generated/ from proto/
	python proto/generate.py

generated: $(READY) ## Fail if generated/ is not what proto/ gives
	@mkdir -p build
	@python proto/generate.py build/generated
	@diff -r -x __pycache__ generated build/generated || { echo "generated/ is stale: run make generate"; exit 1; }

lint: $(READY) ## Check the contract with buf and the code with ruff
	@mkdir -p build
	@python proto/generate.py --image build/image.binpb
	buf lint build/image.binpb --config buf.yaml --path conversations
	buf format --diff --exit-code proto
	ruff check
	ruff format --check

breaking: $(READY) ## Check that the contract did not break since $(AGAINST)
	@mkdir -p build
	@python proto/generate.py --image build/image.binpb
	@python proto/generate.py --image-at $(AGAINST) build/against.binpb
	buf breaking build/image.binpb --against build/against.binpb --config buf.yaml

proof: $(READY) ## Hold 100,000 random policy decisions in SQL against the reference
	python -m tests.support.proof $(ARGS)

mutants: $(READY) ## Break the policy engine in every small way, and see a test fail each time
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt mutmut==3.8.1
	mutmut run && mutmut results

bench: $(READY) ## Measure beside the ideal: bench/RESULTS.md (about 20 minutes)
	@$(BENCH) $(ARGS)

bench-peers: ARGS += --peers ## The same, with OGX beside it (needs Python 3.12, or OGX_PYTHON)
bench-peers: bench

bench-check: $(READY) ## Fail where a ratio to the ideal got worse than in bench/results.json
	@$(BENCH) --check $(ARGS)

licences: $(READY) ## List the packages' licences in docs/licences.md; fail on one that nobody agreed to
	@python -m supply.licences

sbom: $(READY) $(SUPPLY)/.ready ## Write build/sbom.json: the packages that an image has (CycloneDX)
	@rm -rf build/shipped
	@$(BIN)/python -m venv --without-pip build/shipped
	@python -m supply.installed >build/shipped/requirements.txt
	@$(BIN)/python -m pip --python build/shipped/bin/python install --quiet --disable-pip-version-check \
	  -c constraints.txt -r build/shipped/requirements.txt
	@$(SUPPLY)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate \
	  --output-file build/sbom.json build/shipped/bin/python

audit: $(READY) $(SUPPLY)/.ready ## Ask for known vulnerabilities of what is in constraints.txt
	@$(SUPPLY)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

types: $(READY) ## Check the types
	mypy

clean: ## Remove what the other targets made; data stays
	rm -rf tests/interop/*/gen tests/interop/node/dist tests/interop/node/node_modules
	rm -rf $(VENV) build mutants *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(SUPPLY)/.ready: supply/tools.txt | $(READY)
	@$(BIN)/python -m venv $(SUPPLY)
	@$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check -r supply/tools.txt
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or newer is needed: install it, or say which with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "Python's venv is missing: on Debian, apt install python3-venv"; exit 1; }
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,otlp,dev]'
	@touch $@
