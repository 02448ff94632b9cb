# `make` lists the targets. Everything is installed into .venv with the versions of constraints.txt.

PYTHON ?= python3
TORCH_INDEX_URL ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# A laptop may take torch's CPU build: make demo TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
FLAGS ?=
PARTS := lint types imports audit coverage chaos-short chaos-fleet-quick fuzz-short neighbours-short gpu-dry-short
# One worker runs a whole module of tests; tests/conftest.py puts the modules that take long first.
# One more than there are cores, since tests often wait for the processes that they start.
WORKERS = $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo serve test test-fleet coverage check parts lint types imports audit documents lock locked vendor chaos chaos-short chaos-fleet chaos-fleet-short chaos-fleet-quick fuzz faults fuzz-short slow-clients neighbours neighbours-short gpu-dry gpu-dry-short peers demo-model clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## make one picture: install, start a server, ask it through fal's client, stop
	$(BIN)/fourstep demo $(FLAGS)

serve: $(VENV)/.runtime ## serve on http://127.0.0.1:8000 and https://127.0.0.1:8443 until Ctrl-C
	$(BIN)/fourstep serve --model auto --tls-port 8443 $(FLAGS)

# Tests start some hundred processes: each would compile every module anew where the machine's settings forbid to keep it.
test test-fleet coverage: export PYTHONDONTWRITEBYTECODE :=

test: $(VENV)/.dev ## run the tests, one more at once than there are cores (up to four)
	$(BIN)/python -m pytest $(PARALLEL) $(FLAGS)

test-fleet: $(VENV)/.dev ## the tests of clients and of fal's statements, each server of theirs three on one PostgreSQL behind HAProxy (quarter of an hour)
	$(BIN)/python -m pytest --fleet tests/clients tests/api/test_*statements.py tests/api/test_playground.py tests/api/test_schemathesis.py $(FLAGS)

coverage: $(VENV)/.dev ## the tests again but for the longest, the slowest named, and the floor on what they reach in this process
	$(BIN)/python -m pytest $(PARALLEL) -m "not long" --durations=25 --cov --cov-report= $(FLAGS)
	$(BIN)/coverage report --skip-covered

check: $(PARTS) ## lint, types, import contracts, audit, tests, short chaos, fuzz, neighbours and GPU benchmark

parts: ## list what check consists of
	@echo $(PARTS)

lint: $(VENV)/.dev ## ruff and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile.cuda

types: $(VENV)/.dev ## mypy, strict, and TypeScript over what the page's modules declare
	$(BIN)/mypy
	$(BIN)/python -m tests.page.packages types

imports: $(VENV)/.dev ## which package may import which
	$(BIN)/lint-imports

lock: $(VENV)/.dev ## write requirements.lock anew: hashes of what constraints.txt pins (asks the package index)
	$(PIP) uv
	$(BIN)/python .ci/lock.py

locked: $(VENV)/.dev ## install from requirements.lock into a fresh venv, as the image does; a changed hash must fail
	$(BIN)/python .ci/lock.py --check
	.ci/locked

documents: $(VENV)/.dev ## write what docs/ say of settings, commands, routes and metrics anew, from the program itself
	PYTHONPATH=. $(BIN)/python .ci/documents.py

vendor: $(VENV)/.dev ## copy the page's libraries anew, at the versions of tests/page/js/package.json (asks npm's registry)
	$(BIN)/python -m tests.page.packages vendor

audit: $(VENV)/.dev ## known vulnerabilities among the pinned versions, where the advisories can be reached
	$(BIN)/python .ci/audit.py

chaos: $(VENV)/.dev ## kill, freeze and stop servers under load: nothing may be lost (twenty minutes)
	$(BIN)/python -m tests.chaos $(FLAGS)

chaos-short: $(VENV)/.dev ## the same in two minutes, with fewer controls
	$(BIN)/python -m tests.chaos --jobs 150

chaos-fleet: $(VENV)/.dev ## the same of three servers on one PostgreSQL behind HAProxy, both installed (twenty minutes)
	$(BIN)/python -m tests.chaos --fleet --jobs 10000 $(FLAGS)

chaos-fleet-short: $(VENV)/.dev ## the same with 2 000 jobs (five minutes)
	$(BIN)/python -m tests.chaos --fleet --jobs 2000 $(FLAGS)

chaos-fleet-quick: $(VENV)/.dev ## the same with 200 jobs (a minute)
	$(BIN)/python -m tests.chaos --fleet --jobs 200

fuzz: $(VENV)/.dev ## 20 000 malformed requests to every route and socket: no 5xx, no fault, no leak (minutes)
	$(BIN)/python -m tests.fuzz $(FLAGS)

fuzz-short: $(VENV)/.dev ## the same in a few seconds
	$(BIN)/python -m tests.fuzz --cases 1600

slow-clients: $(VENV)/.dev ## good clients beside 300 slow connections and 100 websocket flooders (two minutes)
	$(BIN)/python -m tests.chaos.slow_clients $(FLAGS)

neighbours: $(VENV)/.dev ## a good client beside neighbours and strangers who take all they can get (quarter of an hour)
	$(BIN)/python -m tests.chaos.neighbours $(FLAGS)

neighbours-short: $(VENV)/.dev ## one each of those who take files, processors, names and sockets (a minute and a half)
	$(BIN)/python -m tests.chaos.neighbours --rounds 1 --seconds 2 --only many "large pictures, jpeg" names strangers

faults: $(VENV)/.dev ## a thousand calls of the real clients while their connections break
	$(BIN)/python -m tests.chaos.broken_connections $(FLAGS)

# Green is: every section done, every group within its time, nothing on stderr.
gpu-dry gpu-dry-short: export OMP_NUM_THREADS := 1

gpu-dry: $(VENV)/.dev ## the benchmark for GPUs on this CPU, at tiny sizes (minutes)
	@out=$$(mktemp -d) && $(BIN)/python -m benchmarks.gpu --dry --out $$out $(FLAGS) 2>$$out/stderr; \
	status=$$?; cat $$out/stderr >&2; test $$status = 0 && ! test -s $$out/stderr && rm -r $$out

gpu-dry-short: ## the same in a minute, with the smallest compilers
	@$(MAKE) --silent gpu-dry FLAGS=--short

peers: $(VENV)/.peers ## ours beside diffusers and OpenVINO on this CPU, full-size random weights (hours, 20 GB of memory)
	$(BIN)/python -m benchmarks.peers --threads 1,2 $(FLAGS)

demo-model: $(VENV)/.dev ## train the built-in model from nothing, or go on where it stopped (hours)
	nice -n 19 $(BIN)/python -m training

clean: ## remove everything that make installed or made, but for a training's state (.cache/demo_model)
	rm -rf $(VENV) .cache/clients tests/clients/js/node_modules tests/page/js/node_modules demo-output.jpg
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .schemathesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("fourstep needs Python 3.11 or newer; $(PYTHON) is %d.%d. Hint: name a newer one, as in make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "Installing torch into $(VENV): 200 MB, with CUDA some GB. This takes minutes, once."
	$(PIP) $(TORCH_INDEX) torch
	@touch $@

$(VENV)/.runtime: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "Installing the rest: a minute."
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --editable '.[demo,dev]'
	@touch $@

# Not pinned: it must be what torch's CUDA build brings where that is installed.
$(VENV)/.cuda-compiler: $(VENV)/.dev
	$(PIP) --editable '.[demo,dev,cuda-compiler]'
	@touch $@

$(VENV)/.peers: $(VENV)/.dev
	$(PIP) --editable '.[demo,dev,bench-peers]'
	@touch $@
