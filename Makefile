# make demo   export the small model that ships with the project, run it, and write build/demo.png
# make test   everything that a change has to pass
# Needs Python 3.11 or newer, make and a package index; everything is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# The four code folders are one package only once installed; mypy is shown them as links in one place.
TYPES := build/types/controlnext

.PHONY: demo test
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/controlnext-export --model sdxl --precision fp16 --base examples/shapes/model/base \
		--control examples/shapes/model/controlnet.safetensors \
		--unet-weights examples/shapes/model/unet.safetensors --unet-increments \
		--output build/shapes-fp16 --force
	TRANSFORMERS_VERBOSITY=error $(BIN)/python examples/shapes/demo.py build/shapes-fp16 build/demo.png

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPES) && mkdir -p $(TYPES)
	ln -s $(addprefix $(CURDIR)/,$(wildcard controlnext/*) export engines runtime) $(TYPES)
	MYPYPATH=$(dir $(TYPES)) $(BIN)/mypy --package controlnext
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
