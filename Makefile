# Everything a person does often; `make help` lists it.

# Another Python gets another environment: python3.13 that in .venv-python3.13.
PYTHON ?= python3
VENV ?= .venv$(addprefix -,$(filter-out python3,$(notdir $(PYTHON))))
# Files or folders for `make test`; all tests if empty.
TESTS ?=
CONFIG ?= ml_collections_configs/demo.py
RUN ?= runs/demo
# What the demo is drawn beside: its model by AdamW, stored with the code.
BESIDE ?= $(if $(filter %/demo.py,$(CONFIG)),docs/runs/stored_adamw)
BIN := $(VENV)/bin

.PHONY: help demo test newest check lint architecture slow bench notebooks \
    wheel clean

help: ## List the targets and the variables.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo
	@echo 'Variables: PYTHON and VENV; TESTS of test; CONFIG and RUN of demo. E.g.'
	@echo '  make test PYTHON=python3.13 TESTS=tests/optim'
	@echo '  make demo CONFIG=ml_collections_configs/small.py RUN=runs/small'

demo: $(VENV)/.lm ## Install, prepare the corpus, train, evaluate, sample, draw.
	$(BIN)/python -m lm.data.prepare --config=$(CONFIG)
	$(BIN)/python -m lm.main --config=$(CONFIG) --workdir=$(RUN)
	$(BIN)/python -m lm.report $(RUN) $(BESIDE) --out=$(RUN)

test: $(VENV)/.dev ## Install and run the default tests.
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

newest: ## Run the tests of optim and theory on the newest Python here.
	.ci/newest

check: lint architecture ## Run lint and architecture, as before each commit.

lint: $(VENV)/.dev ## Lint, format, spelling and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

architecture: $(VENV)/.dev ## Import rules: who may import whom.
	$(BIN)/lint-imports

slow: $(VENV)/.dev ## Run the long tests (tens of minutes).
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.dev ## Print the tables of every benchmark.
	for name in train_step train_loop optimizer_step optimizer_compile \
	    gauss_newton_step lotion_step pinn theory messages; do \
	  $(BIN)/python -m benchmarks.$$name || exit 1; done

notebooks: $(VENV)/.dev ## Execute the notebooks at their small size.
	NOTEBOOK_SIZE=small $(BIN)/python -m pytest -n 2 --nbmake \
	  --ignore-glob='*.py' notebooks

wheel: $(VENV)/.dev ## Build the wheel into dist/.
	$(BIN)/python -m build --wheel

clean: ## Remove the environments and what builds leave behind.
	rm -rf $(VENV) .venv .venv-* build dist *.egg-info .jax_cache .pytest_cache .ruff_cache

# The stamp is renewed when the dependencies may have changed.
$(VENV)/.lm: setup.py pyproject.toml
	python=$$(.ci/find_python $(PYTHON)) && "$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lm]'
	touch $@

$(VENV)/.dev: setup.py pyproject.toml
	python=$$(.ci/find_python $(PYTHON)) && "$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
