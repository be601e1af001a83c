# make demo   export the small model that ships with the project, run it, and write build/demo.png
# make check  what a change has to pass while it is written: ruff, mypy, and the tests that export no model
# make test   everything that a change has to pass in the end: the same with all tests
# make test-lowest          the tests with the lowest versions that pyproject.toml admits (constraints-lowest.txt)
# make test-lowest-runtime  the same without PyTorch: what runs bundles, on those versions
# make docs   the site of docs/ in build/docs; a dead link or name is an error
# make dist   the sdist and the wheel in build/dist; make smoke installs that wheel by itself and runs a bundle with it
# make audit                known vulnerabilities of what constraints.txt pins (asks PyPI over the network)
# Needs Python 3.11 or newer, make and a package index; everything is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# The four code folders are one package only once installed; mypy is shown them as links in one place.
TYPES := build/types/controlnext
SCRIPTS := $(wildcard examples/shapes/*.py benchmarks/*.py)
# Two processes share what is exported once; more threads in each would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

DOCS := build/docs-tools
DIST := build/dist
SMOKE := build/smoke
LOWEST := build/lowest
LOWEST_RUNTIME := build/lowest-runtime
RUNTIME_TESTS := tests/core tests/engines tests/runtime

.PHONY: demo check test lint types docs dist smoke test-lowest test-lowest-runtime audit
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/controlnext-export --model sdxl --precision fp16 --base examples/shapes/model/base \
		--control examples/shapes/model/controlnet.safetensors \
		--unet-weights examples/shapes/model/unet.safetensors --unet-increments \
		--output build/shapes-fp16 --force
	$(BIN)/python examples/shapes/demo.py build/shapes-fp16 build/demo.png

test: lint
	$(PYTEST)

check: lint
	$(PYTEST) -m "not export"

# torch's wheel of that version is a CUDA build: 3 GB to download, 8 GB on disk
test-lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --constraint constraints-lowest.txt --editable '.[dev]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/pytest --numprocesses 2 --dist worksteal

test-lowest-runtime:
	$(PYTHON) -m venv --clear $(LOWEST_RUNTIME)
	$(LOWEST_RUNTIME)/bin/pip install --quiet --constraint constraints-lowest.txt \
		--editable '.[cpu,openvino,preprocess,ray,serve,video]' httpx hypothesis jinja2 matplotlib onnx openai \
		playwright pytest pytest-timeout pytest-xdist schemathesis
	OMP_NUM_THREADS=1 $(LOWEST_RUNTIME)/bin/pytest --numprocesses 2 --dist worksteal $(RUNTIME_TESTS)

# the wheel is built of the sdist, away from the checkout, where no file of an earlier build can get into it
dist:
	rm -rf $(DIST)
	$(PYTHON) -m venv --clear build/dist-tools
	build/dist-tools/bin/pip install --quiet --constraint constraints.txt build
	build/dist-tools/bin/python -m build --outdir $(DIST)

smoke:
	$(PYTHON) -m venv --clear $(SMOKE)
	$(SMOKE)/bin/pip install --quiet --constraint constraints.txt \
		"controlnext[cpu,hub,openvino,preprocess,serve,video] @ file://$(firstword $(abspath $(wildcard $(DIST)/*.whl)))"
	cd $(SMOKE) && bin/controlnext env
	cd $(SMOKE) && bin/python $(CURDIR)/tests/shipping/smoke.py $(CURDIR)/tests/data/old_bundle/bundle

# strict: a package that the database does not have is a failure, not a clean one
audit:
	$(PYTHON) -m venv --clear build/audit
	build/audit/bin/pip install --quiet pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

lint: $(INSTALLED) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(dir $(TYPES)) $(BIN)/mypy --package controlnext
	MYPYPATH=$(dir $(TYPES)):examples/shapes:benchmarks $(BIN)/mypy $(SCRIPTS)
	MYPYPATH=$(dir $(TYPES)) $(BIN)/mypy --warn-unused-ignores tests/runtime/typed_calls.py

types:
	rm -rf $(TYPES) && mkdir -p $(TYPES)
	ln -s $(addprefix $(CURDIR)/,$(wildcard controlnext/*) export engines runtime) $(TYPES)

# in an environment of its own: nothing else needs MkDocs, and it needs none of the package's libraries
docs: types $(DOCS)/.installed
	$(DOCS)/bin/mkdocs build --strict --clean

$(DOCS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
