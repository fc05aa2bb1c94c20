# The verbs of IPnext. `make` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
ARGS ?=
# Also where the environment says otherwise: each process of the tests would rewrite 800 files.
export PYTHONDONTWRITEBYTECODE :=
# The demo's data: ml-100k as the recbole wheel carries it (its terms are GroupLens'), without that wheel's dependencies.
DATASET := recbole==1.2.1

# The KServe SDK pins other protobuf and psutil versions than the platform; atheris is large: neither is in the environment.
KSERVE := kserve==0.21.0
ATHERIS := atheris==3.0.0

# vLLM pins other versions of fastapi and torch than the platform: an environment of its own, which hosts find beside the platform's.
GENAI := $(VENV)-genai
# vLLM's wheel names one build of torch for a CPU, which few indexes have; any build of that release runs it on a CPU.
TORCH := 'torch>=2.13,<2.14' 'torchvision>=0.28,<0.29'

# MLflow pins other versions than the platform, which talks to its servers over HTTP only: the tests' server has an environment of its own.
MLFLOW := $(VENV)-mlflow

.PHONY: help setup kernels setup-genai setup-mlflow demo demo-genai dev check format test test-integration test-e2e test-genai test-kubernetes test-all e2e clients collect fuzz bench docs build clean constraints histories

help: ## list the verbs
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | while IFS=$$'\t' read -r verb text; do printf '  make %-16s %s\n' "$$verb" "$$text"; done

# uv is used if it is installed, pip otherwise. $(call MAKE_VENV,DIR), $(call INSTALL,DIR) ARGUMENTS, $(call COMPILE,DIR)
UV := $(shell command -v uv 2>/dev/null)
MAKE_VENV = test -x $1/bin/python || $(if $(UV),$(UV) venv --quiet --seed --python $(PYTHON) $1,{ $(PYTHON) -m venv $1 && $(NEW_PIP); })
# The pip that Python 3.11 brings takes twice the processor time: it compares each file of an index with a thousand tags.
NEW_PIP = { $1/bin/python -m pip install --quiet --disable-pip-version-check --no-compile 'pip>=25' || echo "pip was not upgraded: the installation takes longer" >&2; }
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $1/bin/python,$1/bin/python -m pip install --quiet --disable-pip-version-check --no-compile)
# An engine can't compile modules: it may not write where they are, and would do it at each start, 17 s of processor time in each of its
# processes. Left out are the packages' own tests, which take a fifth of the time, and modules that no engine and no test has imported:
# a fifth of the rest of vLLM's environment. Compilation fails for templates of modules, which are none.
COMPILE = $1/bin/python -m compileall -qq -j 0 -x '$(UNUSED)' $1/lib/python3*/site-packages || true
UNUSED = /(tests?|anthropic|sentry_sdk|mypyc?)/|/site-packages/pip/|/testing/_internal/|/sqlalchemy/testing/|/transformers/models/.*/(modeling|modular|convert)_

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "IPnext needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=python3.11 (or newer)." >&2; exit 2; }
	@echo "setting up $(VENV) (packages, Temporal, Envoy): two to three minutes"
	@$(call MAKE_VENV,$(VENV))
	@$(call INSTALL,$(VENV)) -c constraints.txt -e '.[platform,embedded,demo]'
	@$(call COMPILE,$(VENV))
	@$(call INSTALL,$(VENV)) --no-deps $(DATASET)
	@touch $(READY)

# What tests and checks need besides; it is compiled as they import it. The demo waits for none of it.
$(TOOLS): $(READY)
	@echo "installing what tests and checks need into $(VENV): half a minute"
	@$(call INSTALL,$(VENV)) -c constraints.txt -e '.[platform,embedded,demo,dev]'
	@touch $(TOOLS)

# The tests use the kernels that a platform compiles for its first large fleet.
kernels: $(READY)
	@echo "compiling the planner's kernels for this machine, if they are not: a minute"
	@$(BIN)/python -m planner.kernels

setup: $(TOOLS) ## create the virtual environment with all that the other verbs need

# constraints-genai.txt has all that vLLM needs, but for torch, and without torchaudio and torchcodec, whose builds are linked with CUDA:
# with them transformers can't be imported.
$(GENAI)/.ready: constraints-genai.txt
	@echo "setting up $(GENAI) (vLLM for a CPU): a few minutes, 4 GB"
	@$(call MAKE_VENV,$(GENAI))
	@$(call INSTALL,$(GENAI)) $(TORCH)
	@$(call INSTALL,$(GENAI)) --no-deps -r constraints-genai.txt
	@$(call COMPILE,$(GENAI))
	@touch $@

setup-genai: $(GENAI)/.ready ## vLLM for a CPU, in an environment of its own; without it the tests that need it say so

# constraints-mlflow.txt has what its server and its client need; what only its model flavours import is left out, half of all bytes.
$(MLFLOW)/.ready: constraints-mlflow.txt
	@echo "setting up $(MLFLOW) (an MLflow server): a minute or two, 400 MB"
	@$(call MAKE_VENV,$(MLFLOW))
	@$(call INSTALL,$(MLFLOW)) --no-deps -r constraints-mlflow.txt
	@touch $@

setup-mlflow: $(MLFLOW)/.ready ## a real MLflow server, in an environment of its own; without it the tests that need it say so

demo: $(READY) ## the whole life of a real ranking model on this machine (ARGS=--once: end when done)
	@$(BIN)/ipnext demo $(ARGS)

# The weights come from packages, under their own terms; nothing of them is part of IPnext.
$(GENAI)/.demo: $(GENAI)/.ready constraints-genai-demo.txt
	@echo "installing the weights for the demo (Gemma 3 270M, under Google's Gemma Terms of Use; MiniLM) into $(GENAI)"
	@$(call INSTALL,$(GENAI)) --no-deps -r constraints-genai-demo.txt
	@touch $@

demo-genai: $(READY) $(GENAI)/.demo ## a real chat model, refreshed while clients stream, and embeddings: minutes, 14 GB (ARGS=--once)
	@$(BIN)/python -m demo.genai $(ARGS)

dev: $(READY) ## start the platform without models (ARGS='--state DIR')
	@$(BIN)/ipnext dev $(if $(ARGS),$(ARGS),--state .ipnext/dev)

check: $(TOOLS) ## format, lint, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TOOLS) ## let ruff format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Whole files in each process, the long ones first; of five processes one fills the pauses of the others: tests/conftest.py.
BY_FILE = OMP_NUM_THREADS=1 $(BIN)/pytest -n $1 --dist loadfile --durations 20 -m '$2' --hypothesis-profile ci $(or $(ARGS),$3) $(MAY_SELECT_NONE)
# The tier genai lies here (tests/test_tiers.py): to import all other tests takes each process half a minute.
GENAI_TESTS = tests/genai tests/serving/openai
# pytest ends with status 5 if it selects no test: no failure if ARGS may have narrowed the selection.
MAY_SELECT_NONE = $(if $(strip $(ARGS)),|| [ $$? = 5 ])

test: $(TOOLS) kernels ## the tests that start no process and no server: minutes (ARGS, here and below: further pytest arguments)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --durations 20 -m pure --hypothesis-profile fast $(ARGS) $(MAY_SELECT_NONE)

test-integration: $(TOOLS) kernels ## the tests on Temporal, Envoy, PostgreSQL, S3, agents and hosts
	$(call BY_FILE,3,integration)

test-e2e: $(TOOLS) kernels ## the tests that drive a whole platform, or a browser
	$(call BY_FILE,3,e2e)

test-genai: $(TOOLS) ## the tests on real vLLM; those without it are skipped (make setup-genai)
	$(call BY_FILE,2,genai,$(GENAI_TESTS))

test-kubernetes: $(TOOLS) kernels ## the tests of pods on the doubles of a cluster, or on that of TEST_KUBECONFIG=FILE
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests/kubernetes/contract tests/ipnext/infra/kubernetes/test_pods.py tests/ipnext/infra/test_port_contract.py -k 'not memory and not local_process' $(ARGS)

test-all: $(TOOLS) kernels ## all tests but the nemesis; those on vLLM are skipped without it (make setup-genai)
	$(call BY_FILE,5,not nemesis)

collect: $(TOOLS) ## import all tests without running any: one that can't be imported is named at once, and what was compiled is kept
	@OMP_NUM_THREADS=1 $(BIN)/pytest --collect-only -qq | tail -n 20

e2e: $(TOOLS) kernels ## the tests that drive the whole platform, and kill -9 at every boundary of a run (minutes)
	$(BIN)/pytest -m 'e2e or nemesis' $(ARGS)

bench: $(READY) ## measure publish -> serving, stage by stage (planner: python -m benchmarks.planner.scale)
	$(BIN)/python -m benchmarks.lifecycle.publish_to_serving $(ARGS)

clients: $(TOOLS) ## the KServe SDK's own client against the edge, in an environment of its own (its pins are not ours)
	@$(call MAKE_VENV,$(VENV)-kserve)
	@$(call INSTALL,$(VENV)-kserve) '$(KSERVE)'
	IPNEXT_KSERVE_PYTHON=$(VENV)-kserve/bin/python $(BIN)/pytest tests/serving/edge/test_clients_kserve.py $(ARGS)

fuzz: $(READY) ## atheris on all that reads bytes of others (ARGS: seconds for each target, default 60)
	@$(call MAKE_VENV,$(VENV)-fuzz)
	@$(call INSTALL,$(VENV)-fuzz) -c constraints.txt -e '.[signing]' '$(ATHERIS)' cedarpy httptools joserfc numpy orjson structlog
	$(VENV)-fuzz/bin/python tests/fuzz/run.py $(or $(ARGS),60)

docs: $(TOOLS) ## check that the documentation agrees with the code
	$(BIN)/pytest tests/docs tests/ipnext $(ARGS) -k docs

histories: $(TOOLS) ## record the workflow histories that the replay tests use
	$(BIN)/python -m tests.workflows.builds.record_histories

build: $(TOOLS) ## sdist and wheel into dist/
	$(BIN)/python -m build

constraints: $(TOOLS) ## write constraints.txt from the versions installed now (torch stays a range)
	@$(BIN)/python -m pip freeze --exclude-editable | grep -vE '^(torch|recbole|ipnext|nvidia-.*|triton)(==| @)' > constraints.txt

clean: ## remove the virtual environment and what builds left
	rm -rf $(VENV) $(VENV)-kserve $(VENV)-fuzz $(GENAI) $(MLFLOW) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .ipnext
