# Everything lives in this checkout: the environment in .venv, data, models, rows. `make help` lists the words.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 5000
BEST_FIRST := ?workflowType=machine_learning&orderByKey=metrics.%60test%2FAP%60&orderByAsc=false
SYNCED := $(VENV)/.synced

export PATH := $(abspath $(VENV))/bin:$(PATH)
export UV_PROJECT_ENVIRONMENT := $(abspath $(VENV))
export UV_PYTHON_DOWNLOADS := never
# The machine's own certificates, as git and pip use them: behind a company's proxy there are no others.
export UV_SYSTEM_CERTS ?= true
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help install identity repro fresh ui compare test

help:  ## This list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

install: $(SYNCED) identity  ## Install what uv.lock names, into .venv

# uv comes from the package index in the version that uv.lock pins; the sync keeps it, as it is a dev dependency.
$(SYNCED): uv.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not here; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $$($(PYTHON) --version) is too old, 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { \
		echo "error: $(PYTHON) cannot make a virtual environment; Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@version=$$(sed -n '/^name = "uv"$$/{n;s/^version = "\(.*\)"$$/\1/p;}' uv.lock); \
		test "$$($(VENV)/bin/uv --version 2>/dev/null | cut -d' ' -f2)" = "$$version" || \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "uv==$$version"
	$(VENV)/bin/uv sync --locked
	@touch $@

# `dvc exp run` commits each experiment, so git must know who you are.
identity:
	@git rev-parse --is-inside-work-tree >/dev/null 2>&1 || { \
		echo "error: this folder is not a git repository, and DVC keeps experiments in git: git clone it"; exit 1; }
	@git config user.email >/dev/null && git config user.name >/dev/null || { \
		git config user.name >/dev/null || git config --local user.name "$${USER:-somebody}"; \
		git config user.email >/dev/null || git config --local user.email "$${USER:-somebody}@localhost"; \
		echo "git did not know you: experiments of this repository are committed as" \
			"$$(git config user.name) <$$(git config user.email)> (git config --local user.name ... changes it)"; }

repro: install  ## Run the pipeline: data, backbone, detector, scores, report
	@detection check
	@echo
	@dvc repro
	@echo
	@detection summary

# Nothing that was made before is used: no checkpoint, no finished stage, no result in DVC's cache.
fresh: install  ## Run everything again, from nothing
	@detection check
	@DETECTION_FRESH=1 dvc repro --force --no-run-cache
	@detection summary

# MLflow opens on its pages for language models; the link leads to the rows, highest test/AP first.
ui: install  ## Open the MLflow rows in a browser (PORT=5000)
	@uri=$$(python -c 'from detection.tracking.store import tracking_uri; print(tracking_uri())') || exit 1; \
	case $$uri in http*) echo "the rows are at $$uri"; exit 0;; esac; \
	id=$$(python -c 'from detection.tracking.store import connect; print(connect().experiment)') || exit 1; \
	echo "the rows: http://127.0.0.1:$(PORT)/#/experiments/$$id/runs$(BEST_FIRST)"; \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false PYTHONWARNINGS=ignore:starlette.middleware.wsgi \
		mlflow ui --workers 1 --port $(PORT) --backend-store-uri "$$uri"

compare: install  ## Table of the experiments: what differs, and the scores (columns of files left out)
	@dvc exp show --only-changed --drop '.*/.*|params.yaml'

# One test process a core, with one thread each: threads of several processes that wait for each other spin.
test: install  ## Lint, types and tests
	ruff check .
	ruff format --check .
	mypy
	OMP_NUM_THREADS=1 pytest -n auto --dist loadfile
