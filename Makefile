# `make demo` and `make test` are the two commands; each makes .venv first if it is missing or out of date.
# Another interpreter: `make test PYTHON=python3.12`.

PYTHON ?= python3
EXTRAS ?= workbench,demo,dev
BIN := .venv/bin
READY := .venv/.installed

.PHONY: demo test check cli-surface clean
.DELETE_ON_ERROR:

# A real selection that ends with an artifact, and two photos classified with it.
demo: $(READY)
	$(BIN)/python -m vitrail select --max-latency 50ms --min-accuracy 72 --budget 4m --out demo/winner
	photos=$$($(BIN)/python -c 'import sklearn; print(sklearn.__path__[0])')/datasets/images && \
	    $(BIN)/python -m vitrail predict demo/winner "$$photos/china.jpg" "$$photos/flower.jpg"

test: check
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# After a deliberate change of the command line; read the difference before committing it.
cli-surface: $(READY)
	$(BIN)/python tests/cli_surface.py

clean:
	rm -rf .venv demo dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Vitrail needs Python 3.10 or newer: name one, e.g. make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e ".$(if $(EXTRAS),[$(EXTRAS)])"
	touch $@
