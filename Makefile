# Everything a person or a machine does with this project. `make` alone lists it.
# Needs Python 3.11 or later, make, and a network the first time; nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# Half as many again as there are cores: much of what tests do is waiting, for programs to start and for certificates to be renewed.
JOBS ?= $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) * 3 + 1) / 2 )))
# A virtual environment holds absolute paths, so one that was copied here with the tree does not count as ours: its stamp has another name.
PLACE := $(shell pwd -P | cksum | cut -d' ' -f1)
SERVER_STAMP := $(VENV)/.stamp-server-$(PLACE)
DEV_STAMP := $(VENV)/.stamp-dev-$(PLACE)

.PHONY: help
help: ## List what make can do here
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make demo ARGS='--seconds 30 --keep'    make test ARGS='tests/pki -k names'    make bench ONLY=issue"

$(SERVER_STAMP): requirements/server.txt requirements/build.txt pyproject.toml tools/venv.sh
	@tools/venv.sh $(VENV) requirements/server.txt requirements/build.txt
	@touch $@

ASSETS_STAMP := $(VENV)/.stamp-assets-$(PLACE)

$(ASSETS_STAMP): $(SERVER_STAMP) tools/assets.sh tools/assets/package.json tools/assets/package-lock.json
	@tools/assets.sh $(VENV) $@

$(DEV_STAMP): $(SERVER_STAMP) requirements/dev.txt
	@tools/venv.sh $(VENV) requirements/dev.txt
	@touch $@

.PHONY: venv
venv: $(SERVER_STAMP) $(ASSETS_STAMP) ## Make .venv with the server, the agent and the command line: .venv/bin/handclasp
	@echo "$(BIN)/handclasp is ready"

.PHONY: demo
demo: $(SERVER_STAMP) $(ASSETS_STAMP) ## Watch services keep talking mutual TLS while their certificates change under them
	@$(BIN)/handclasp demo $(ARGS)

.PHONY: test
test: $(DEV_STAMP) $(ASSETS_STAMP) ## Run the tests, on all cores; ARGS selects some
	@tools/system-packages.sh
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

.PHONY: check
check: $(DEV_STAMP) ## Lint, formatting, types, floors, and whether the generated documentation is up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict src
	@$(BIN)/lint-imports
	@$(BIN)/python tools/protos.py check
	@$(BIN)/python tools/docs.py check

.PHONY: fix
fix: $(DEV_STAMP) ## Repair what can be repaired: lint, formatting, generated documentation
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python tools/docs.py write

.PHONY: docs
docs: $(DEV_STAMP) ## Write the generated documentation again
	@$(BIN)/python tools/docs.py write

.PHONY: protos
protos: $(DEV_STAMP) ## Make the Python messages of src/handclasp/proto/*.proto again
	@$(BIN)/python tools/protos.py write

.PHONY: bench
bench: $(DEV_STAMP) ## Measure against the budgets, write bench/results.json; ONLY=issue measures a part
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(ARGS)

.PHONY: assets
assets: $(SERVER_STAMP) ## Fetch the console's browser libraries again
	@tools/assets.sh $(VENV) $(ASSETS_STAMP)

.PHONY: screenshots
screenshots: $(DEV_STAMP) $(ASSETS_STAMP) ## Make the pictures of the console in docs/images again
	@$(BIN)/python tools/screenshots.py

.PHONY: lock
lock: ## Resolve the dependencies again and write requirements/*.txt (UPGRADE=1 takes the newest versions)
	@tools/lock.sh $(if $(UPGRADE),--upgrade)

.PHONY: clean
clean: ## Remove the environment and every cache
	@rm -rf $(VENV) .make dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache bench/results.json
	@find src tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} +
