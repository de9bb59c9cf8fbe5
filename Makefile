# Every target sets up what it needs and is quick the second time.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
TOOLS  := $(VENV)/.tools
BENCH  ?= .venv-bench
PEERS  := $(BENCH)/.ready
TRITON := .venv-bench-triton
MLSERVER := .venv-bench-mlserver
CLIENTS := .venv-clients
CLIENTS_READY := $(patsubst tests/clients/%.txt,$(CLIENTS)/%/.ready,$(wildcard tests/clients/*.txt))
DIST   ?= dist
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt

# The fastest backend on these processors.
EXTRAS := $(if $(filter x86_64 amd64,$(shell uname -m)),[openvino])

.DEFAULT_GOAL := help
.PHONY: help run dist test pytest clients lint style types format audit observe soak reliability bench protocols wrk clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(READY) ## serve the embedded default model on 127.0.0.1:8000
	@$(BIN)/gradless serve

# In this environment, not in one that build would download anew.
dist: $(BIN)/python ## build the wheel and the sdist into dist/
	@$(PIP) build hatchling
	@$(BIN)/python -m build --no-isolation --outdir $(DIST) .

# Three workers, for two cores: much of a test's time is one process that waits for another. Each imports PyTorch and
# collects all tests, so more take longer. tests/conftest.py says which files stay with one of them, and in which order
# they take them. Should one die, the run fails at once: pytest-xdist 3.8 starts another, and then waits for ever for
# what nobody was given.
PYTEST_ARGS ?= --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Processes by the dozen read the same modules, and are to find them compiled.
test: export PYTHONDONTWRITEBYTECODE :=
# The workers share the cores: threads of PyTorch would wait for one another longer than they work.
test: export OMP_NUM_THREADS := 1
test: export OMP_WAIT_POLICY := PASSIVE
# mypy takes half a minute of one core, and the tests' start does not fill the other.
test: style $(TOOLS) ## lint and every layer of tests
	@$(MAKE) --no-print-directory --jobs 2 types pytest

pytest: $(DEV) $(CLIENTS_READY)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

clients: $(DEV) $(CLIENTS_READY) ## clients of other servers, unchanged, against a real server
	@$(BIN)/python -m pytest tests/clients

lint: style types ## ruff, mypy --strict and the import rules

style: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(DEV)
	@$(BIN)/lint-imports
	@$(BIN)/mypy

# The package's own Prometheus, where it starts as a service, is left alone: this one listens elsewhere.
observe: $(DEV) ## gradless, Debian's Prometheus and traffic of every kind, until Ctrl-C
	@command -v prometheus >/dev/null || { \
		echo "prometheus is missing: installing Debian's package"; \
		test "$$(id -u)" = 0 || { echo "run as root: apt-get install prometheus"; exit 1; }; \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends prometheus; }
	@$(BIN)/python -m observe

MINUTES ?= 30

soak: $(DEV) ## callers of every kind for MINUTES=30, and every request accounted for
	@$(BIN)/python -m reliability.soak --minutes $(MINUTES)

reliability: $(DEV) ## overload, slow and leaving clients, rubbish, SIGTERM, SIGKILL; writes reliability/results.md and docs/reliability.md
	@$(BIN)/python -m reliability

bench: $(PEERS) $(TRITON)/.ready wrk ## gradless beside other servers; BENCH_ARGS="--quick" tries it
	@$(BENCH)/bin/python -m benchmarks --python $(BIN)/python $(BENCH_ARGS)

protocols: $(MLSERVER)/.ready $(DEV) wrk ## the cost of each protocol, beside MLServer; BENCH_ARGS="--rounds 1" tries it
	@$(BIN)/python -m benchmarks.protocols $(BENCH_ARGS)

wrk:
	@command -v wrk >/dev/null || { \
		echo "wrk is missing: installing Debian's package"; \
		test "$$(id -u)" = 0 || { echo "run as root: apt-get install wrk"; exit 1; }; \
		apt-get update -qq && apt-get install -qq -y wrk; }

format: $(DEV) ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Not of lint, which must not fail for want of a network. Strict: a mirror without advisories would pass for one that
# knows of no fault.
audit: $(DEV) ## ask PyPI whether what constraints.txt locks has known vulnerabilities
	@$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt

clean: ## remove what the other targets made
	rm -rf $(VENV) $(BENCH) $(TRITON) $(MLSERVER) $(CLIENTS) $(DIST) build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("gradless needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV) || { \
		echo "python's venv module is missing: installing Debian's package"; \
		test "$$(id -u)" = 0 || { echo "run as root: apt-get install python3-venv"; exit 1; }; \
		apt-get update -qq && apt-get install -qq -y python3-venv && $(PYTHON) -m venv --clear $(VENV); }

# Other people's clients, a browser, what torch.compile compiles with, and what looks at the metrics. Anew when this
# list has changed.
$(TOOLS): Makefile | $(BIN)/python
	@missing=; \
	command -v curl >/dev/null || missing="$$missing curl"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	command -v g++ >/dev/null || missing="$$missing g++"; \
	command -v prometheus >/dev/null || missing="$$missing prometheus"; \
	headers=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	test -f "$$headers/Python.h" || missing="$$missing python3-dev"; \
	if [ -n "$$missing" ]; then \
		echo "the tests need Debian's$$missing"; \
		test "$$(id -u)" = 0 || { echo "run as root: apt-get install$$missing"; exit 1; }; \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends $$missing; \
	fi
	@touch $@

# PyTorch is over half of the wait: the registry's Linux build carries CUDA. TORCH_INDEX is another index, from which
# nothing but PyTorch is taken.
$(READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing gradless and PyTorch into $(VENV): a few minutes the first time"
	@$(if $(TORCH_INDEX),$(PIP) --index-url '$(TORCH_INDEX)' --no-deps torch torchvision)
	@$(PIP) --editable '.$(EXTRAS)'
	@touch $@

$(DEV): $(READY)
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt "pip>=25.1"
	@$(PIP) --group dev
	@touch $@

# They conflict with one another.
$(CLIENTS)/%/.ready: tests/clients/%.txt | $(BIN)/python
	@echo "installing the client $* into $(CLIENTS)/$*"
	@$(BIN)/python -m venv --clear $(CLIENTS)/$*
	@$(CLIENTS)/$*/bin/python -m pip --disable-pip-version-check --quiet install --requirement $<
	@touch $@

# It sees the project's PyTorch through a path file. Of the constraints only PyTorch and what stands on it hold there:
# the peers have their own ideas of the rest, which the project's environment keeps as it is.
$(PEERS): benchmarks/requirements-peers.txt $(READY)
	@echo "installing the servers to compare with into $(BENCH)"
	@$(BIN)/python -m venv --clear $(BENCH)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(BENCH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	@grep -E '^(torch|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z]*|timm|numpy|pillow)==' constraints.txt \
		> $(BENCH)/constraints.txt
	@$(BENCH)/bin/python -m pip --disable-pip-version-check --quiet install \
		--constraint $(BENCH)/constraints.txt --requirement benchmarks/requirements-peers.txt
	@touch $@

# Triton's wheel needs a Python with a shared library, which Debian's is, of the project's version. Without one, Triton
# is left out.
$(TRITON)/.ready: benchmarks/requirements-triton.txt $(READY)
	@if test -x /usr/bin/python3 && test "$$(/usr/bin/python3 -c 'import sys; print(sys.version_info[:2])')" = \
		"$$($(BIN)/python -c 'import sys; print(sys.version_info[:2])')"; then \
		echo "installing Triton to compare with into $(TRITON)"; \
		/usr/bin/python3 -m venv --clear $(TRITON) && \
		$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
			> "$$($(TRITON)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth" && \
		$(TRITON)/bin/python -m pip --disable-pip-version-check --quiet install \
			--requirement benchmarks/requirements-triton.txt; \
	else \
		echo "Triton is left out: /usr/bin/python3 is not of the version of $(BIN)/python"; mkdir -p $(TRITON); \
	fi
	@touch $@

# The project's packages are seen only after the installation, in which they would stand for packages of other versions.
# There is no MLServer for Python 3.13 or newer.
$(MLSERVER)/.ready: benchmarks/requirements-mlserver.txt $(READY)
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then \
		echo "installing MLServer to compare with into $(MLSERVER)"; \
		$(BIN)/python -m venv --clear $(MLSERVER) && \
		$(MLSERVER)/bin/python -m pip --disable-pip-version-check --quiet install \
			--requirement benchmarks/requirements-mlserver.txt && \
		$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
			> "$$($(MLSERVER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"; \
	else \
		echo "MLServer is left out: it needs Python 3.12 or older"; mkdir -p $(MLSERVER); \
	fi
	@touch $@
