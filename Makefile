# The two that matter: `make demo` and `make test`. Each builds .venv from requirements.lock when it has changed.
PYTHON ?= $(or $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name)))),python3)
ARGS ?=
# More processes than cores, for many tests wait; one that has run out of tests takes some of another's.
PARALLEL ?= -n 4 --dist=worksteal --max-worker-restart=0

# Bytecode is kept, whatever the environment says of it: else each process, and each command that a test starts,
# compiles everything anew.
test test-slow: export PYTHONDONTWRITEBYTECODE =

BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow bench bench-failover bench-tenants bench-strays lint types generate generated check lock \
	clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## writers and readers routed across PostgreSQL 16 and 18, live
	@$(BIN)/router demo $(ARGS)

test: $(READY)  ## the tests, but those marked slow; ARGS="-k name --postgres=docker" goes to pytest
	@$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)

test-slow: $(READY)  ## the tests marked slow, and those by hypothesis with all their examples
	@$(BIN)/python -m pytest $(PARALLEL) -n 2 -m "slow or hypothesis" --hypothesis-profile=thorough \
		-o faulthandler_timeout=300 $(ARGS)

bench: $(READY)  ## the cost of a routed checkout, as ratios, of waiting and of a failover
	@$(BIN)/python -m bench $(ARGS)

bench-failover: $(READY)  ## how long writes wait, and which reads fail, when the primary dies: beside hasql's
	@$(BIN)/python -m bench failover $(ARGS)

bench-tenants: $(READY)  ## 10,000 tenants under a cap of 50, beside a plain pool and SQLAlchemy; and a flood of one
	@$(BIN)/python -m bench tenants $(ARGS)

bench-strays: $(READY)  ## 1,000,000 checkouts with references kept from earlier blocks and used; ARGS=10000 for fewer
	@$(BIN)/python -m bench.strays $(ARGS)

lint: $(READY)  ## ruff: rules and layout
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(READY)  ## mypy, strict
	@$(BIN)/mypy

generate: $(READY)  ## write the generated files: the sync shell, the process-wide functions, the JSON schema, the page of settings
	@$(BIN)/python tools/async_to_sync.py
	@$(BIN)/python -m tools.faces
	@$(BIN)/python tools/generate.py

generated: $(READY)  ## are the generated files up to date?
	@$(BIN)/python tools/async_to_sync.py --check
	@$(BIN)/python -m tools.faces --check
	@$(BIN)/python tools/generate.py --check

check: lint types generated test  ## all of these, before a commit

lock: $(READY)  ## pin the newest of every dependency anew, with hashes
	@$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 $(or $(ARGS),--upgrade) \
		--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --system-certs \
		--quiet --output-file requirements.lock

clean:  ## remove .venv and every cache
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, and '$(PYTHON)' is not: say which with make PYTHON=python3.12" >&2; exit 1; }
	@echo "building .venv (once, until requirements.lock or pyproject.toml change)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q router  # as pip does for what it installs otherwise: `import router` is quick at once
	@touch $@
