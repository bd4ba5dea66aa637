# make run | sweep | compare | verify | ui | server | move-store | sync | tidy | review | bench | test | test-all | lint | lock | clean | distclean. Every target sets up what it needs.
# PYTHON names the interpreter for the environment, TORCH=cpu takes torch without CUDA (Linux).
PYTHON ?= python3
TORCH ?= default
PORT ?= 5000
HOST ?= 127.0.0.1
BASE ?= origin/main
GRID ?= model.bottleneck_size=2,4,8,16,32,64 train.seed=0,1,2
HEAD ?=
CPU_INDEX := https://download.pytorch.org/whl/cpu

# Relative, so that a path with spaces is no trouble; the stages' `python` is the environment's.
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
PIP := $(BIN)/python -m pip --disable-pip-version-check install

.PHONY: help setup setup-dev setup-cluster run sweep compare verify ui server move-store sync tidy review bench test test-all lint lock clean distclean

help:
	@echo 'make run        set up, reproduce the pipeline, say where the results are'
	@echo 'make sweep      run a grid of parameters (GRID="$(GRID)" JOBS=N SWEEP=NAME ENGINE=ray ADDRESS=…)'
	@echo 'make compare    a table and figures of the runs (BY=model.bottleneck_size SWEEP=NAME REDRAW=1): reports/compare/'
	@echo 'make verify     reproduce the committed results in a clone, and compare (0: alike, 2: not)'
	@echo 'make ui         MLflow on the table of runs (PORT=5000)'
	@echo 'make server     a tracking server for a team, on PostgreSQL (HOST=127.0.0.1 PORT=5000); docs/server.md'
	@echo 'make move-store  move the runs of the own store to that server'
	@echo 'make sync       deliver to MLflow what an outage kept back; a run for the workspace'
	@echo 'make tidy       list what may go: deleted runs, leftovers (REMOVE=1 deletes it)'
	@echo 'make review     what a change does, against BASE=origin/main (0: fine, 2: not)'
	@echo 'make test       the tests, under 5 minutes; make test-all adds the slow ones'
	@echo 'make bench      speed, quality and what tracking and checkpoints cost, measured here (over two hours)'
	@echo 'make lint       ruff and mypy'
	@echo 'make setup      only the environment (TORCH=cpu: torch without CUDA)'
	@echo 'make setup-cluster  what Ray, PostgreSQL and a DVC remote over SSH need'
	@echo 'make lock       compile requirements*.txt anew from requirements*.in'
	@echo 'make clean      delete what a run makes again; make distclean also .venv and raw data'

setup: .venv/installed
setup-dev: .venv/installed-dev
setup-cluster: .venv/installed-cluster

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifeq ($(TORCH),cpu)
	$(PIP) --index-url $(CPU_INDEX) $$(sed -n 's/^\(torch\(vision\)\?==[^ ]*\).*/\1/p' requirements.txt)
	grep -vE '^(cuda|nvidia|triton)' requirements.txt > .venv/requirements-cpu.txt
	$(PIP) -r .venv/requirements-cpu.txt
else
	$(PIP) -r requirements.txt
endif
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

.venv/installed-cluster: .venv/installed requirements-cluster.txt
	$(PIP) -r requirements-cluster.txt
	@touch $@

run: setup
	@$(BIN)/python -m pipeline.run

sweep: $(if $(ENGINE),setup-cluster,setup)
	@$(BIN)/python -m pipeline.sweep -S '$(GRID)' $(if $(JOBS),--jobs $(JOBS)) $(if $(SWEEP),--name '$(SWEEP)') \
	    $(if $(ENGINE),--engine $(ENGINE)) $(if $(ADDRESS),--address $(ADDRESS))

compare: setup
	@$(BIN)/python -m pipeline.compare $(if $(BY),--by $(BY)) $(if $(SWEEP),--sweep '$(SWEEP)') $(if $(REDRAW),--redraw)

verify: setup
	@$(BIN)/python -m pipeline.verify || test $$? = 4

ui: setup
	@$(BIN)/python -m pipeline.ui --port $(PORT)

server: setup-cluster
	@$(BIN)/python -m pipeline.server --host $(HOST) --port $(PORT)

move-store: setup-cluster
	@$(BIN)/python -m pipeline.move_store

sync: setup
	@$(BIN)/python -m pipeline.sync

tidy: setup
	@$(BIN)/python -m pipeline.tidy $(if $(REMOVE),--remove)

bench: setup
	@for name in throughput cuda time_to_quality quality recipe growth overhead checkpoint tracking table; do \
	    $(BIN)/python -m benchmarks.$$name || exit 1; done

review: setup
	@$(BIN)/python -m pipeline.review $(BASE) $(HEAD)

test: setup-dev
	$(BIN)/python -m pytest -m 'not slow'

test-all: setup-dev
	$(BIN)/python -m pytest

lint: setup-dev
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

lock: setup-dev
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --upgrade requirements.in -o requirements.txt
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --upgrade requirements-dev.in -o requirements-dev.txt
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --upgrade requirements-review.in -o requirements-review.txt
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --upgrade requirements-cluster.in -o requirements-cluster.txt

# Not the MLflow store: its runs cannot be made again.
clean:
	rm -rf data/prepared data/baselines models/*.safetensors .checkpoints .dvc/cache .dvc/tmp
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pipeline benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv data/raw
