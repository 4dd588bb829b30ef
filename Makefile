# make run    set up, then fine-tune the example to the end
# make test   set up, then the whole test suite
# make lint   formats, linters, types, and the native build with warnings as errors
# make clean  remove .venv and everything that was built

PYTHON ?= $(shell scripts/find_python.sh)
VENV := .venv
BIN := $(VENV)/bin
EXAMPLE := examples/stdlib_docs
TEST_WORKERS ?= 2
STAMP := $(VENV)/installed
SOURCES := pyproject.toml constraints.txt $(shell find lohan_core plugins csrc -type f -not -name '*.pyc' -not -name '*.so')
NATIVE_SOURCES := $(shell find csrc -name '*.c' -o -name '*.h' -o -name '*.cpp' -o -name '*.hpp')
NATIVE_BUILD := build/lint

.DELETE_ON_ERROR:
.PHONY: setup run test lint clean

setup: $(STAMP)

$(BIN)/python:
	scripts/system_packages.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)

# The wheel is installed, not the checkout, so that tests see what users get. Without build isolation, so that the build
# tools are the pinned ones and a change of one file costs seconds.
$(STAMP): $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt cffi cmake ninja pybind11 scikit-build-core
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation '.[dev]'
	touch $@

run: $(STAMP)
	$(BIN)/python -P $(EXAMPLE)/prepare.py
	$(BIN)/lohan train $(EXAMPLE)/config.yaml
	$(BIN)/python -P $(EXAMPLE)/plot.py

# -P: the current directory is the checkout, whose lohan_core has no native modules. PATH: the native tests need cmake.
# Two at a time: most tests keep one core busy, and wait for what they have started or for the drive.
test: $(STAMP)
	scripts/system_packages.sh $(BIN)/python browser
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -P -m pytest --timeout=900 -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=examples/plugin_template $(BIN)/mypy -p lohan_plugin_template
	$(BIN)/clang-format --dry-run -Werror $(NATIVE_SOURCES)
	$(BIN)/cmake -S csrc -B $(NATIVE_BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" \
		-DLOHAN_WERROR=ON
	$(BIN)/cmake --build $(NATIVE_BUILD)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
