# Two commands matter: `make run` and `make test`. They need python3 (3.11 or newer, with its venv module) and nothing else;
# the tests of what is written in C are skipped where there is no compiler.
#
# Stamps under .venv record what was installed from which pyproject.toml, so that a second run starts at once.

PYTHON ?= python3
DATA_DIR ?= data
PORT ?= 9000
# Further flags of `tigrislike serve`, for instance: make run FLAGS="--host 0.0.0.0 --workers 4"
FLAGS ?=
# The cluster file for `make test-fdb`
FDB ?=
# How many tests `make test` runs at a time, each file's one after another: much of their time is waiting for processes.
WORKERS ?= 3

# What nodes under test import is compiled once, whatever the shell says, and not at each of their starts.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
QUICK := -m "not slow and not soak"
TOGETHER := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# Tests of nodes, which keep their metadata in the engine that TIGRISLIKE_TEST_ENGINE names
ON_EITHER_ENGINE := tests/e2e tests/crash tests/replication/test_reclaim.py
WITH_CLUSTER = TIGRISLIKE_TEST_FDB="$(abspath $(FDB))"
CLIENTS := $(filter-out torch,$(patsubst tests/clients/requirements-%.txt,%,$(wildcard tests/clients/requirements-*.txt)))

# Makes a virtual environment.
define environment
@$(PYTHON) -m venv $(1) || { \
	echo "This Python has no ensurepip (Debian: python3-venv); taking pip from the one there is."; \
	rm -rf $(1) && $(PYTHON) -m venv --without-pip $(1) && $(PYTHON) -m pip --python $(1)/bin/python install --quiet pip; }
endef

.PHONY: run test test-fdb test-slow soak bench lab lint clients clients-torch clean

run: .venv/.installed
	@exec $(BIN)/tigrislike serve --data-dir $(DATA_DIR) --port $(PORT) $(FLAGS)

# Where TIGRISLIKE_TEST_FDB names the cluster file of a FoundationDB cluster that answers, the engine contract and whatever
# is marked `fdb` run on it too, and after that the S3 end-to-end suite, the crash tests and reclaim with metadata there;
# elsewhere one line says that these are skipped, and with ARGS they are left out. To `make test-fdb` are left the same suite
# over https, which the engine does not see and ten minutes have no room for, regions, and all that is slow. The tests of
# the engines clear the cluster, so that they run alone where there is one.
test: .venv/.installed-test
	$(if $(ARGS),$(BIN)/python -m pytest $(QUICK) $(ARGS),@if said=$$($(BIN)/python -m tests.clusters); then set -ex; \
		$(BIN)/python -m pytest tests/kv $(QUICK); \
		$(BIN)/python -m pytest tests --ignore=tests/kv $(QUICK) $(TOGETHER); \
		TIGRISLIKE_TEST_ENGINE=fdb $(BIN)/python -m pytest $(ON_EITHER_ENGINE) $(QUICK) $(TOGETHER) -k "not https"; \
	else $(BIN)/python -m pytest $(QUICK) $(TOGETHER) && echo "$$said: the S3 and crash tests over it are skipped"; fi)

# Everything that can run on FoundationDB, on the cluster of the cluster file FDB: the engine contract, which clears the
# cluster (and refuses one that holds anything but what tests left), then the S3 end-to-end suite, the crash tests, regions
# (which take the right to make network namespaces) and others with nodes whose metadata are there, then every other test that needs a cluster. The client library is found as any other:
# make test-fdb FDB=/etc/foundationdb/fdb.cluster LD_LIBRARY_PATH=...
test-fdb: .venv/.installed-test
	$(if $(FDB),,$(error which cluster? make test-fdb FDB=/path/to/fdb.cluster))
	@$(WITH_CLUSTER) $(BIN)/python -m tests.clusters
	$(WITH_CLUSTER) $(BIN)/python -m pytest tests/kv -m "not soak" --timeout 1800 $(ARGS)
	$(WITH_CLUSTER) TIGRISLIKE_TEST_ENGINE=fdb $(BIN)/python -m pytest $(ON_EITHER_ENGINE) tests/regions \
		tests/admin/test_sealed_node.py tests/chaos/test_chaos.py::test_a_node_and_its_processes_killed_under_load -m "not soak" --timeout 1800 $(ARGS)
	$(WITH_CLUSTER) $(BIN)/python -m pytest tests --ignore=tests/kv -m "fdb and not soak" --timeout 1800 $(ARGS)

# Three files at a time as well, unless there is a cluster, which the tests of the engines clear.
test-slow: .venv/.installed-test
	$(BIN)/python -m pytest -m slow --timeout 1800 $(if $(TIGRISLIKE_TEST_FDB),,$(TOGETHER)) $(ARGS)

soak: .venv/.installed-test
	$(BIN)/python -m pytest -m soak --timeout 0 $(ARGS)

# All of it, into the tables of bench/README.md; with ARGS what they say, and nowhere but where they say.
bench: .venv/.installed-bench
	$(BIN)/python -m bench $(or $(ARGS),--readme)

# Three regions on this machine, 80 ms apart: make lab ARGS="--keep"; with metadata in a cluster: make lab ARGS="--fdb FILE"
lab: .venv/.installed
	@$(BIN)/python -m lab $(ARGS)

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Clients under test live apart, each with what its constraints file says, as they do on a user's machine. The tests make
# the environments that they need; this makes all of them beforehand. The one with torch is large, and a target of its own.
clients: $(CLIENTS:%=.venvs/%/.installed) .venvs/tigris/.installed

clients-torch: .venvs/torch/.installed

# Tigris' command line is a package of Node's: exactly what its lock file says, and nothing of it run at installation.
.venvs/tigris/.installed: tests/clients/tigris/package.json tests/clients/tigris/package-lock.json
	@mkdir -p $(@D) && cp $^ $(@D)
	@npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --silent
	@ln -sfn node_modules/.bin $(@D)/bin
	@touch $@

.venvs/%/.installed: tests/clients/requirements-%.txt
	$(call environment,$(@D))
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.venvs/%: .venvs/%/.installed ;

# What `python -m venv` writes last is what shows that it is whole.
.venv/bin/activate:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "tigrislike needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(call environment,.venv)

.venv/.installed: pyproject.toml .venv/bin/activate
	@echo "Installing tigrislike into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/.installed-test: pyproject.toml .venv/bin/activate
	@echo "Installing tigrislike and what its tests need into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@ .venv/.installed

.venv/.installed-bench: pyproject.toml .venv/bin/activate
	@echo "Installing tigrislike and the stores it is compared with into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	@touch $@ .venv/.installed

# Data is nobody's to clean: `data/` stays.
clean:
	rm -rf .venv .venvs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
