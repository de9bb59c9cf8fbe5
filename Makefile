# Every target sets up what it needs and is quick the second time.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
TOOLS  := $(VENV)/.tools
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt

# OpenVINO runs the default model about three times as fast as PyTorch does on these processors.
EXTRAS := $(if $(filter x86_64 amd64,$(shell uname -m)),[openvino])

.DEFAULT_GOAL := help
.PHONY: help run test lint format clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: $(READY) ## serve the embedded default model on 127.0.0.1:8000
	@$(BIN)/gradless serve

test: lint $(TOOLS) ## lint, then every layer of tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(DEV) ## ruff, mypy --strict and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(DEV) ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove what the other targets made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("gradless needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV) || { \
		echo "python's venv module is missing: installing Debian's package"; \
		test "$$(id -u)" = 0 || { echo "run as root: apt-get install python3-venv"; exit 1; }; \
		apt-get update -qq && apt-get install -qq -y python3-venv && $(PYTHON) -m venv --clear $(VENV); }

# Other people's clients, and what torch.compile compiles with.
$(TOOLS): | $(BIN)/python
	@missing=; \
	command -v curl >/dev/null || missing="$$missing curl"; \
	command -v g++ >/dev/null || missing="$$missing g++"; \
	headers=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	test -f "$$headers/Python.h" || missing="$$missing python3-dev"; \
	if [ -n "$$missing" ]; then \
		echo "the tests need Debian's$$missing"; \
		test "$$(id -u)" = 0 || { echo "run as root: apt-get install$$missing"; exit 1; }; \
		apt-get update -qq && apt-get install -qq -y $$missing; \
	fi
	@touch $@

# PyTorch is over half of the wait: the registry's Linux build carries CUDA.
$(READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing gradless and PyTorch into $(VENV): a few minutes the first time"
	@$(PIP) --editable '.$(EXTRAS)'
	@touch $@

$(DEV): $(READY)
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt "pip>=25.1"
	@$(PIP) --group dev
	@touch $@
