# Muster: `make demo` and `make test` set everything up themselves. Needs Python 3.11+ and make; nothing else.
#
#   make demo ARGS=--once     the whole story, then exit 0 (or 1 with the reason)
#   make test ARGS='-k rollout'
#   make test-browser         the pages on the fleet of a live demo; needs Chromium, takes five minutes
#   make check                format, lint, types, import contracts, known vulnerabilities
#   make fuzz ARGS='--minutes 60'   every parser of what comes from outside; guided by coverage where atheris is
#   make wheels sbom          what is shipped, and a CycloneDX document of each wheel, in dist/
#   make check-wheels         that a device can install from wheels alone, on x86-64 and aarch64; asks the index
#   make bench                measured figures of the README
#   make bench-rollout        the gate and the rollouts against their peers' rules; ten minutes
#   make bench-console        what each page costs with 100,000 devices; ten minutes
#   make bench-metrics        cost, accuracy, noise and drift of the anonymous metrics; ten minutes
#   make bench-serving        our serving against its peers and the bare engine; needs wrk, takes half an hour

SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PARTS := shared agent controller simulator
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-browser check audit fuzz wheels sbom check-wheels bench bench-serving bench-rollout bench-metrics bench-console lock clean

help:
	@sed -n 's/^#   //p' Makefile

.venv/.installed: requirements.lock pyproject.toml $(PARTS:%=%/pyproject.toml) controller/assets/package-lock.json
	@test -n "$(PYTHON)" || { echo "Muster needs Python 3.11 or newer; none was found on the PATH." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(PARTS:%=-e ./%)
	$(BIN)/python deploy/assets.py
	@touch $@

install: .venv/.installed

demo: install
	@$(BIN)/muster demo $(ARGS)

test: install
	@$(BIN)/python -m pytest --ignore=tests/browser $(ARGS)

test-browser: install
	@$(BIN)/python -m pytest tests/browser $(ARGS)

check: install
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports
	@$(BIN)/python deploy/supply_chain/audit.py

audit: install
	@$(BIN)/python deploy/supply_chain/audit.py

# Atheris has no wheels for every Python: where it cannot be had, inputs are drawn at random.
fuzz: install
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: 'atheris>=3,<4' 2>/dev/null || \
	  echo "atheris cannot be installed here: the inputs are not guided by coverage" >&2
	@PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

# The same sources give the same bytes.
wheels: install
	@rm -f dist/*.whl
	@for part in $(PARTS); do \
	  (cd $$part && SOURCE_DATE_EPOCH=315532800 ../$(BIN)/python -m hatchling build -t wheel -d ../dist) || exit 1; done

sbom: install
	@$(BIN)/python deploy/supply_chain/sbom.py dist

check-wheels: install .cache/lock/bin/uv
	@$(BIN)/python deploy/supply_chain/wheels.py .cache/lock/bin/uv

.cache/lock/bin/uv:
	$(PYTHON) -m venv .cache/lock && .cache/lock/bin/pip install --quiet uv

bench: install
	@for bench in tests/bench/bench_*.py; do $(BIN)/python $$bench $(ARGS) || exit 1; done

bench-serving: install
	@PYTHONPATH=tests $(BIN)/python -m bench.serving $(ARGS)

bench-metrics: install
	@PYTHONPATH=tests $(BIN)/python -m bench.metrics $(ARGS)

bench-console: install
	@PYTHONPATH=tests $(BIN)/python -m bench.console $(ARGS)

bench-rollout: install
	@PYTHONPATH=tests $(BIN)/python -m bench.rollout $(ARGS)

# The lock names no host: hashes alone say what is installed.
lock:
	$(PYTHON) -m venv .cache/lock && .cache/lock/bin/pip install --quiet uv
	.cache/lock/bin/uv pip compile pyproject.toml --group pyproject.toml:dev --universal --generate-hashes \
	  $(PARTS:%=--no-emit-package muster-%) --no-header --no-annotate --python-version 3.11 --output-file requirements.lock

clean:
	rm -rf .venv .cache demo
