# Everything is in this checkout: the environment in .venv, data, models, MLflow runs. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 5000
BEST_FIRST := ?workflowType=machine_learning&orderByKey=metrics.%60test%2FAP%60&orderByAsc=false
SYNCED := $(VENV)/.synced
# Another build of torch than uv.lock's, for an older driver: `make install TORCH_INDEX=...`; later installs keep it.
CHOSEN_INDEX := $(VENV)/.torch-index
TORCH_INDEX ?= $(shell cat $(CHOSEN_INDEX) 2>/dev/null)

export PATH := $(abspath $(VENV))/bin:$(PATH)
export UV_PROJECT_ENVIRONMENT := $(abspath $(VENV))
export UV_PYTHON_DOWNLOADS := never
# The system's certificates, as git and pip use them: a company's proxy has its own.
export UV_SYSTEM_CERTS ?= true
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help install torch identity repro fresh ui compare docs test coverage soak

help:  ## This list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

install: $(SYNCED) torch identity  ## Install the packages of uv.lock into .venv

torch: $(SYNCED)
	@test -z "$(TORCH_INDEX)" || \
		{ test "$(TORCH_INDEX)" = "$$(cat $(CHOSEN_INDEX) 2>/dev/null)" && test $(SYNCED) -ot $(CHOSEN_INDEX); } || \
		{ $(VENV)/bin/uv pip install --python $(VENV)/bin/python --index-url "$(TORCH_INDEX)" \
			--reinstall-package torch --reinstall-package torchvision "torch>=2.11" "torchvision>=0.26" && \
		echo "$(TORCH_INDEX)" > $(CHOSEN_INDEX); }

# uv comes from the package index in the version that uv.lock pins; the sync keeps it, as it is a dev dependency.
# Where Python may not write bytecode, each process would compile torch again, for 5 s.
$(SYNCED): uv.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $$($(PYTHON) --version) is too old, 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { \
		echo "error: $(PYTHON) cannot create a virtual environment; Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@version=$$(sed -n '/^name = "uv"$$/{n;s/^version = "\(.*\)"$$/\1/p;}' uv.lock); \
		test "$$($(VENV)/bin/uv --version 2>/dev/null | cut -d' ' -f2)" = "$$version" || \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "uv==$$version"
	$(VENV)/bin/uv sync --locked $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
	@touch $@

# `dvc exp run` commits each experiment, so git needs an identity.
identity:
	@git rev-parse --is-inside-work-tree >/dev/null 2>&1 || { \
		echo "error: this folder is not a git repository, and DVC keeps experiments in git: git clone it"; exit 1; }
	@git config user.email >/dev/null && git config user.name >/dev/null || { \
		git config user.name >/dev/null || git config --local user.name "$${USER:-user}"; \
		git config user.email >/dev/null || git config --local user.email "$${USER:-user}@localhost"; \
		echo "git has no identity: experiments of this repository are committed as" \
			"$$(git config user.name) <$$(git config user.email)> (git config --local user.name ... to change it)"; }

repro: install  ## Run the pipeline: data, backbone, detector, scores, report
	@detection check
	@echo
	@dvc repro
	@echo
	@detection summary

# Uses no earlier result: no checkpoint, no finished stage, no entry of DVC's run-cache.
fresh: install  ## Run everything again, from scratch
	@detection check
	@DETECTION_FRESH=1 dvc repro --force --no-run-cache
	@detection summary

# MLflow opens on its GenAI pages; the link leads to the list of runs, highest test/AP first.
ui: install  ## Serve the MLflow runs (PORT=5000)
	@uri=$$(python -c 'from detection.tracking.store import tracking_uri; print(tracking_uri())') || exit 1; \
	case $$uri in http*) echo "the runs are at $$uri"; exit 0;; esac; \
	id=$$(python -c 'from detection.tracking.store import connect; print(connect().experiment)') || exit 1; \
	echo "the runs: http://127.0.0.1:$(PORT)/#/experiments/$$id/runs$(BEST_FIRST)"; \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false PYTHONWARNINGS=ignore:starlette.middleware.wsgi \
		mlflow ui --workers 1 --port $(PORT) --backend-store-uri "$$uri"

compare: install  ## Table of the experiments: differing params, and the scores
	@dvc exp show --only-changed --drop '.*/.*|params.yaml'

docs: install  ## Build the documentation in site/
	@NO_MKDOCS_2_WARNING=1 python -m mkdocs build

# One test process per core, one thread each: threads of several processes that wait for each other spin.
# tests/conftest.py orders the files.
PYTEST_PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

test: install  ## Lint, types and tests
	ruff check .
	ruff format --check .
	mypy
	OMP_NUM_THREADS=1 pytest $(PYTEST_PARALLEL)

coverage: install  ## Tests with the lines that they run: half as long again
	OMP_NUM_THREADS=1 pytest $(PYTEST_PARALLEL) --cov

soak: install  ## Kills, races, dead servers: real processes, about half an hour
	python -m tests.soak.kills --kills 10
	python -m tests.soak.races --rounds 1
	python -m tests.soak.server --deaths 1 --only-deaths
