# make demo   export the small model that ships with the project, run it, and write build/demo.png
# make check  what a change has to pass while it is written: ruff, mypy, and the tests that export no model
# make test   everything that a change has to pass in the end: the same with all tests
# Needs Python 3.11 or newer, make and a package index; everything is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# The four code folders are one package only once installed; mypy is shown them as links in one place.
TYPES := build/types/controlnext
SCRIPTS := $(wildcard examples/shapes/*.py benchmarks/*.py)
# Two processes share what is exported once; more threads in each would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

.PHONY: demo check test lint
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/controlnext-export --model sdxl --precision fp16 --base examples/shapes/model/base \
		--control examples/shapes/model/controlnet.safetensors \
		--unet-weights examples/shapes/model/unet.safetensors --unet-increments \
		--output build/shapes-fp16 --force
	TRANSFORMERS_VERBOSITY=error $(BIN)/python examples/shapes/demo.py build/shapes-fp16 build/demo.png

test: lint
	$(PYTEST)

check: lint
	$(PYTEST) -m "not export"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPES) && mkdir -p $(TYPES)
	ln -s $(addprefix $(CURDIR)/,$(wildcard controlnext/*) export engines runtime) $(TYPES)
	MYPYPATH=$(dir $(TYPES)) $(BIN)/mypy --package controlnext
	MYPYPATH=$(dir $(TYPES)):examples/shapes:benchmarks $(BIN)/mypy $(SCRIPTS)
	MYPYPATH=$(dir $(TYPES)) $(BIN)/mypy --warn-unused-ignores tests/runtime/typed_calls.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
