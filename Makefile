# `make help` lists the commands. Each target sets up what it needs. What only this experiment has is in project.mk.
# PYTHON names the interpreter for the environment, TORCH=cpu takes torch without CUDA (Linux).
PYTHON ?= python3
TORCH ?= default
PORT ?= 5000
HOST ?= 127.0.0.1
BASE ?= origin/main
GRID ?=
HEAD ?=
CPU_INDEX := https://download.pytorch.org/whl/cpu

# Relative, so that a path with spaces is no trouble; the stages' `python` is the environment's.
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: help setup setup-dev setup-cluster run sweep compare verify ui server move-store sync tidy review \
    test test-all lint lock clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/installed ## only the environment (TORCH=cpu: torch without CUDA)
setup-dev: .venv/installed-dev ## what tests and lint need too
setup-cluster: .venv/installed-cluster ## what Ray, PostgreSQL and a DVC remote over SSH need too

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifeq ($(TORCH),cpu)
	@UV_DEFAULT_INDEX=$(CPU_INDEX) PIP_INDEX_URL=$(CPU_INDEX) .ci/install $$(sed -nE 's/^(torch(vision)?==[^ ]*).*/\1/p' requirements.txt)
	@grep -vE '^(cuda|nvidia|triton)' requirements.txt > .venv/requirements-cpu.txt
	@.ci/install -r .venv/requirements-cpu.txt
else
	@.ci/install -r requirements.txt
endif
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@.ci/install -r requirements-dev.txt
	@touch $@

.venv/installed-cluster: .venv/installed requirements-cluster.txt
	@.ci/install -r requirements-cluster.txt
	@touch $@

run: setup ## set up, reproduce the pipeline, print where the results are and what changed
	@$(BIN)/python -m pipeline.run

sweep: $(if $(ENGINE),setup-cluster,setup) ## run a grid of parameters (GRID='train.lr=0.002,0.005 …' JOBS=N SWEEP=NAME ENGINE=ray ADDRESS=…)
	@$(BIN)/python -m pipeline.sweep $(if $(GRID),-S '$(GRID)') $(if $(JOBS),--jobs $(JOBS)) $(if $(SWEEP),--name '$(SWEEP)') \
	    $(if $(ENGINE),--engine $(ENGINE)) $(if $(ADDRESS),--address $(ADDRESS))

compare: setup ## a table and figures of the runs: reports/compare/ (BY=train.lr SWEEP=NAME REDRAW=1)
	@$(BIN)/python -m pipeline.sweep.compare $(if $(BY),--by $(BY)) $(if $(SWEEP),--sweep '$(SWEEP)') $(if $(REDRAW),--redraw)

verify: setup ## reproduce the committed results in a clone, and compare (0: alike, 2: not)
	@$(BIN)/python -m pipeline.review.verify || test $$? = 4

ui: setup ## MLflow on the table of runs (PORT=5000)
	@$(BIN)/python -m pipeline.tracking.ui --port $(PORT)

server: setup-cluster ## a tracking server for a team, on PostgreSQL (HOST=127.0.0.1 PORT=5000); docs/server.md
	@$(BIN)/python -m pipeline.server --host $(HOST) --port $(PORT)

move-store: setup-cluster ## move the runs of the local store to that server
	@$(BIN)/python -m pipeline.server.migrate

sync: setup ## deliver to MLflow what an outage kept back; a run for the workspace
	@$(BIN)/python -m pipeline.tracking.sync

tidy: setup ## list what may go: deleted runs, leftovers (REMOVE=1 deletes it)
	@$(BIN)/python -m pipeline.tidy $(if $(REMOVE),--remove)

review: setup ## what a change does, against BASE=origin/main (0: fine, 2: not)
	@$(BIN)/python -m pipeline.review $(BASE) $(HEAD)

TWO_AT_A_TIME = --numprocesses 2 --dist worksteal

test: setup-dev ## the fast tests
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) -m 'not slow'

test-all: setup-dev ## all tests
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) -m 'not alone'
	$(BIN)/python -m pytest -m alone || test $$? = 5 # 5: there are none

lint: setup-dev ## ruff, mypy, and the walls between the folders of pipeline/
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

lock: setup-dev ## compile requirements*.txt again from requirements*.in, with the newest versions
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --upgrade requirements.in -o requirements.txt
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --upgrade requirements-dev.in -o requirements-dev.txt
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --upgrade requirements-review.in -o requirements-review.txt
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --upgrade requirements-cluster.in -o requirements-cluster.txt

# Not the MLflow store: its runs cannot be made again.
clean: ## delete what a run makes again
	rm -rf data/prepared data/baselines models/*.safetensors .checkpoints .dvc/cache .dvc/tmp
	rm -rf .pytest_cache .mypy_cache .ruff_cache .grimp_cache .import_linter_cache .hypothesis mutants
	find pipeline benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## also delete .venv and the raw data
	rm -rf .venv data/raw

-include $(dir $(lastword $(MAKEFILE_LIST)))project.mk
