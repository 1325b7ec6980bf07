# `make test` and `make demo` work in a fresh clone: they create the environment, install the package
# into it, and do so again only when something that the installation depends on has changed.
#
#   PYTHON    interpreter to build the environment with (3.10 to 3.13)
#   VENV      where the environment lies
#   EXTRAS    optional dependencies to install, of those in pyproject.toml
#   PIP_ARGS  handed to pip, such as an --extra-index-url with builds of torch for the CPU
#   ARGS      handed to pytest or to the demo
#   SPARSE_RUNTIME_CUDA     whether the CUDA library is built: auto (where nvcc is on PATH), 1 or 0
#   SPARSE_RUNTIME_CUTLASS  headers of CUTLASS 4.2, for the library's kernels for sm_90a

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,demo
PIP_ARGS ?=
ARGS ?=

python := $(VENV)/bin/python
installed := $(VENV)/.sparse_runtime_installed
# A folder counts too: its time changes when a file in it is removed.
sources := pyproject.toml constraints.txt $(wildcard setup.py) $(shell find csrc 2>/dev/null)
formatted_cpp := $(shell find csrc -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types format clean

help:
	@echo "make demo     convert, verify, search with and time a real sentence encoder"
	@echo "make test     run the tests (one file: make test ARGS=tests/project/test_import_table.py)"
	@echo "make lint     check style: ruff, clang-format"
	@echo "make types    check types: mypy"
	@echo "make format   rewrite files to the style"
	@echo "make install  only create the environment and build the extension"
	@echo "make clean    remove builds and caches; the environment stays"
	@echo
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) PIP_ARGS=$(PIP_ARGS)"

$(python):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: Python 3.10 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
	    "name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(installed): $(sources) | $(python)
	$(python) -m pip install --disable-pip-version-check -q $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

install: $(installed)

demo: $(installed)
	$(python) benchmarks/demo.py $(ARGS)

# One worker a core; tests/conftest.py divides the threads of torch among the workers.
test: $(installed)
	$(python) -m pytest -q -n auto --dist worksteal $(ARGS)

lint: $(installed)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(if $(formatted_cpp),$(VENV)/bin/clang-format --dry-run --Werror $(formatted_cpp))

types: $(installed)
	$(python) -m mypy

format: $(installed)
	$(python) -m ruff check --fix .
	$(python) -m ruff format .
	$(if $(formatted_cpp),$(VENV)/bin/clang-format -i $(formatted_cpp))

clean:
	rm -rf build dist sparse_runtime.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f sparse_runtime/_C*.so sparse_runtime/libsparse_runtime_cuda.so
	find sparse_runtime kernels benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f $(installed)
