# Every target makes what it needs: `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint format types benchmark fuzz faults container-test lock clean

demo: $(VENV)/.installed
	$(BIN)/compressor demo

PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test: $(VENV)/.installed-dev
	$(PYTEST)

# What `make test` leaves out for its length: benchmarks, studies, examples, the site, whole command lines.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The site, in build/site; strict: a warning or a broken link fails. Nothing is fetched.
.PHONY: docs
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir build/site

# What it needs is told by `make benchmark BENCHMARK=--help`; what is not given is skipped.
benchmark: $(VENV)/.installed
	$(BIN)/python -m benchmarks.quality $(BENCHMARK)

# At least 100,000 mutated inputs to whatever reads a file: `make fuzz FUZZ="--seconds 120"`.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz.run $(FUZZ)

# Random kills and faults while it compresses, and at every step of saving.
faults: $(VENV)/.installed
	$(BIN)/python -m benchmarks.faults $(FAULTS)
	$(BIN)/python -m benchmarks.faults --every-step

# Builds the Docker image without a daemon, and runs it: as root on Debian. See the script's head.
container-test: $(BIN)/python
	PYTHON=$(BIN)/python .ci/container

# Pins what the image installs. CUDA libraries are not in it: each build of torch names its own.
lock: $(BIN)/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra export --extra gguf --extra lora --universal \
	  --python-version 3.11 --no-annotate --no-header --quiet --output-file constraints.txt
	sed -i '/^nvidia-/d; /^cuda-/d' constraints.txt

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version + ". Say which: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# The stamps hold the time of the last installation; it is repeated when the requirements change.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed
