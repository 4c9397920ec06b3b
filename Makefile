# `make` alone prints the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SUPPLY := build/supply
RULE := deploy/kubernetes/components/monitoring/prometheus-rule.yaml
# The contract is compared with the last release, or with main if there is none.
AGAINST ?= $(shell git describe --tags --abbrev=0 2>/dev/null || echo main)

BENCH := PYTHONPATH=.:generated python -m bench

# Tests run in five processes for two cores, since they wait half of the time. More than eight cost more to start than they save.
WORKERS ?= $(shell n=$$(($$(getconf _NPROCESSORS_ONLN) * 5 / 2)); echo $$((n < 8 ? n : 8)))
# Tests start the service a hundred times: its compiled modules are kept, whatever the environment says.
PYTEST := env -u PYTHONDONTWRITEBYTECODE pytest --numprocesses $(WORKERS)

export PATH := $(abspath $(BIN)):$(abspath build/bin):$(PATH)

.PHONY: help run test check check-slow check-tools interop generate generated lint types breaking proof mutants release release-image stranger bench bench-peers bench-latency bench-http bench-memory bench-watch flames bench-check faults faults-short licences sbom audit clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

run: $(READY) ## Serve on 127.0.0.1:50051, with a private PostgreSQL
	@exec python -m server serve $(ARGS)

test: $(READY) ## Run the tests that need Python and PostgreSQL only: at most 3 minutes on two cores
	$(PYTEST) --dist worksteal -m "not tool and not slow" $(ARGS)

check: generated lint breaking types test check-slow check-tools faults-short ## Everything CI runs: at most 20 minutes

check-slow: $(READY)
	$(PYTEST) --dist worksteal -m "slow and not tool"

check-tools: $(READY)
	$(PYTEST) --dist loadfile -m tool

interop: $(READY) ## Run the clients in Go, Node, Java, Rust and Python, the SDKs of OpenAI and OGX, and schemathesis, that can be built here
	pytest tests/interop $(ARGS)

generate: $(READY) ## Generate generated/ from proto/, and the alerts of Kubernetes from deploy/prometheus
	python proto/generate.py
	@mkdir -p build
	@{ sed '/^spec:/q' $(RULE); sed -n '/^groups:/,$$p' deploy/prometheus/alerts.yaml | sed 's/^./  &/'; } > build/rule.yaml
	@mv build/rule.yaml $(RULE)

generated: $(READY) ## Fail if generated/ is out of date
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

breaking: $(READY) ## Fail if the contract breaks clients of the last release
	@mkdir -p build
	@python proto/generate.py --image build/image.binpb
	@python proto/generate.py --image-at $(AGAINST) build/against.binpb
	buf breaking build/image.binpb --against build/against.binpb --config buf.yaml

faults: $(READY) ## Inject faults under load and check what is stored afterwards: at most 30 minutes
	python -m tests.faults $(ARGS)

faults-short: $(READY)
	python -m tests.faults --short

proof: $(READY) ## Compare 100,000 random policy decisions in SQL with a reference implementation
	python -m tests.support.proof $(ARGS)

mutants: $(READY) ## Mutate the policy engine, and list the mutants that no test kills
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt mutmut==3.8.1
	mutmut run && mutmut results

bench: $(READY) ## Compare with a minimal server and write bench/RESULTS.md (about 30 minutes)
	@$(BENCH) $(ARGS)

bench-peers: override ARGS += --peers ## The same, and compare with a minimal server in Go (needs Go) and with OGX (needs Python 3.12, or OGX_PYTHON)
bench-peers: bench

bench-latency: $(READY) ## Print CPU times and latencies beside the minimal server (about 10 minutes)
	@$(BENCH) --print $(ARGS)

bench-http: $(READY) ## Print the CPU time of the same calls over HTTP and over gRPC (about 5 minutes)
	@PYTHONPATH=.:generated python -m bench.http_edge $(ARGS)

bench-memory: $(READY) ## Print the memory of one worker over 200,000 calls, without and with JWT (about 8 minutes)
	@PYTHONPATH=.:generated python -m bench.memory $(ARGS)
	@PYTHONPATH=.:generated python -m bench.memory --jwt $(ARGS)

bench-watch: $(READY) ## Print how late watches are told, what they cost, and whether the targets are met (about 30 minutes)
	@PYTHONPATH=.:generated python -m bench.watch $(ARGS)

flames: $(READY) ## Write a flame graph of each workload to docs/flames, by py-spy (about 5 minutes)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt py-spy==0.4.3
	@PYTHONPATH=.:generated python -m bench.flames $(ARGS)

bench-check: $(READY) ## Fail if a ratio to the minimal server is worse than in bench/results.json
	@$(BENCH) --check $(ARGS)

licences: $(READY) ## Write docs/licences.md, and fail on a licence that is not approved
	@python -m supply.licences

sbom: $(READY) $(SUPPLY)/.ready ## Write build/sbom.json: the packages in an image (CycloneDX)
	@rm -rf build/shipped
	@$(BIN)/python -m venv --without-pip build/shipped
	@python -m supply.installed >build/shipped/requirements.txt
	@$(BIN)/python -m pip --python build/shipped/bin/python install --quiet --disable-pip-version-check \
	  -c constraints.txt -r build/shipped/requirements.txt
	@$(SUPPLY)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate \
	  --output-file build/sbom.json build/shipped/bin/python

release: sbom ## Build dist/: packages of server and client, the contract, bill of materials, checksums
	@python -m supply.release dist --sbom build/sbom.json

stranger: release ## Go from the files of a release to calls in four languages, without the repository (needs root, all tools)
	@python -m tests.stranger dist

release-image: $(READY) ## Add the image to dist/ as an OCI archive (needs buildah)
	@python -m supply.image dist

audit: $(READY) $(SUPPLY)/.ready ## Fail on known vulnerabilities of the packages in constraints.txt
	@$(SUPPLY)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

types: $(READY) ## Check the types
	mypy

clean: ## Remove what the other targets made, except data
	rm -rf bench/go/gen examples/*/gen examples/*/node_modules tests/interop/*/gen tests/interop/node/dist tests/interop/node/node_modules
	rm -rf tests/interop/openai/node/node_modules
	rm -rf $(VENV) build dist mutants *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

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
