# The verbs of IPnext. `make` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
# The demo's data: ml-100k as the recbole wheel carries it (its terms are GroupLens'), without that wheel's dependencies.
DATASET := recbole==1.2.1

# The KServe SDK pins other protobuf and psutil versions than the platform; atheris is large: neither is in the environment.
KSERVE := kserve==0.21.0
ATHERIS := atheris==3.0.0

.PHONY: help setup demo dev check format test e2e clients fuzz bench docs build clean constraints histories

help: ## list the verbs
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | while IFS=$$'\t' read -r verb text; do printf '  make %-12s %s\n' "$$verb" "$$text"; done

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "IPnext needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=python3.11 (or newer)." >&2; exit 2; }
	@echo "setting up $(VENV) (packages, Temporal, Envoy): two to three minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[platform,embedded,demo,dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DATASET)
	@echo "compiling the planner for this machine: about a minute"
	@$(BIN)/python -m planner.kernels
	@touch $(READY)

setup: $(READY) ## create the virtual environment with all that the other verbs need

demo: $(READY) ## the whole life of a real ranking model on this machine (ARGS=--once: end when done)
	@$(BIN)/ipnext demo $(ARGS)

dev: $(READY) ## start the platform without models (ARGS='--state DIR')
	@$(BIN)/ipnext dev $(if $(ARGS),$(ARGS),--state .ipnext/dev)

check: $(READY) ## format, lint, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## let ruff format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(READY) ## all tests, in three processes (ARGS: further pytest arguments)
	$(BIN)/pytest -n 3 --dist loadfile -m 'not nemesis' $(ARGS)

e2e: $(READY) ## the tests that drive the whole platform, and kill -9 at every boundary of a run (minutes)
	$(BIN)/pytest -m 'e2e or nemesis' $(ARGS)

bench: $(READY) ## measure publish -> serving, stage by stage (planner: benchmarks/planner_scale.py)
	$(BIN)/python benchmarks/publish_to_serving.py $(ARGS)

clients: $(READY) ## the KServe SDK's own client against the edge, in an environment of its own (its pins are not ours)
	@test -x $(VENV)-kserve/bin/python || $(PYTHON) -m venv $(VENV)-kserve
	@$(VENV)-kserve/bin/python -m pip install --quiet --disable-pip-version-check '$(KSERVE)'
	IPNEXT_KSERVE_PYTHON=$(VENV)-kserve/bin/python $(BIN)/pytest tests/serving/edge/test_clients_kserve.py $(ARGS)

fuzz: $(READY) ## atheris on the codecs of the data plane (ARGS: seconds for each target, default 60)
	@test -x $(VENV)-fuzz/bin/python || $(PYTHON) -m venv $(VENV)-fuzz
	@$(VENV)-fuzz/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . '$(ATHERIS)' numpy orjson structlog httptools
	$(VENV)-fuzz/bin/python tests/fuzz/run.py $(or $(ARGS),60)

docs: $(READY) ## check that the documentation agrees with the code
	$(BIN)/pytest tests/docs tests/ipnext $(ARGS) -k docs

histories: $(READY) ## record the workflow histories that the replay tests use
	$(BIN)/python tests/workflows/record_histories.py

build: $(READY) ## sdist and wheel into dist/
	$(BIN)/python -m build

constraints: $(READY) ## write constraints.txt from the versions installed now (torch stays a range)
	@$(BIN)/python -m pip freeze --exclude-editable | grep -vE '^(torch|recbole|ipnext|nvidia-.*|triton)(==| @)' > constraints.txt

clean: ## remove the virtual environment and what builds left
	rm -rf $(VENV) $(VENV)-kserve $(VENV)-fuzz dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .ipnext
