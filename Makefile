# `make demo` and `make test` are the two commands; each makes .venv first if it is missing or out of date.
# Another interpreter: `make test PYTHON=python3.12`.

PYTHON ?= python3
EXTRAS ?= workbench,train,demo,dev
BIN := .venv/bin
READY := .venv/.installed

.PHONY: demo test test-quick check audit dist examples example-cpp cli-surface clean
.DELETE_ON_ERROR:

# Three models whose weights a package carries, on two engines: what wins is shipped, used and verified. The
# catalogue's other models come from the Hugging Face hub: leave --models out.
demo: $(READY)
	$(BIN)/vitrail select --models 'tf_efficientnet_lite[012]*' --min-accuracy 75 --max-latency 100ms \
	    --budget 2m --out demo/winner --overwrite
	photos=$$($(BIN)/python -c 'import sklearn; print(sklearn.__path__[0])')/datasets/images && \
	    $(BIN)/vitrail predict demo/winner --top 3 "$$photos/china.jpg" "$$photos/flower.jpg" && \
	    $(BIN)/vitrail verify demo/winner && \
	    $(BIN)/python examples/use_winner.py demo/winner "$$photos/china.jpg" "$$photos/flower.jpg"

# Two workers of one thread: on several, small models mostly wait for each other. Tests of one file stay together,
# because they share what is dear to make. What measures has the machine for itself, afterwards; importing the other
# test files for it would take ten seconds.
WORKERS ?= 2
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: check
	$(PARALLEL) -m "not alone"
	$(BIN)/python -m pytest -m alone $$(grep -l "mark\.alone" tests/test_*.py)

# Lint, types and what takes no seconds: about a minute.
test-quick: check
	$(PARALLEL) -m "not alone and not slow"

# The wheel and the source archive in dist/, the wheel tried in a new environment.
dist: $(READY)
	$(BIN)/python scripts/check_dist.py

# Long, and wants an idle machine; what each needs beside the packages stands in its README.
examples: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -q conformal-clip-data pyarrow usearch
	$(BIN)/python examples/textile/run.py --out examples-run/textile
	$(BIN)/python examples/fashion/run.py --work examples-run/fashion
	$(BIN)/python examples/emoji/run.py --out examples-run/emoji

# A C++ program that reads the artifact of `make demo`, built and compared; its packages: examples/cpp/README.md.
example-cpp: $(READY)
	test -d demo/winner || $(MAKE) demo
	photos=$$($(BIN)/python -c 'import sklearn; print(sklearn.__path__[0])')/datasets/images && \
	    PYTHON=$(BIN)/python BUILD=examples-run/cpp examples/cpp/run.sh demo/winner "$$photos/china.jpg"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Known vulnerabilities of what is installed; asks PyPI's advisory service, so it needs the network.
audit: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -q pip-audit
	$(BIN)/pip-audit --skip-editable

# After a deliberate change of the command line; read the difference before committing it.
cli-surface: $(READY)
	$(BIN)/python tests/cli_surface.py

clean:
	rm -rf .venv demo examples-run dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Vitrail needs Python 3.10 or newer: name one, e.g. make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e ".$(if $(EXTRAS),[$(EXTRAS)])"
	touch $@
