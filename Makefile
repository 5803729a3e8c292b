# Uses the active environment; PYTHON=... picks another.
PYTHON ?= python
WORKERS ?= 2

.PHONY: demo test test-all test-matrix check docs clean

demo:  ## prune and fine-tune the shipped model on real images, save it, load it again
	$(PYTHON) -m vitprune demo --out runs/demo --force

test:  ## all tests but those of the models beyond the list
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-all:  ## those too
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist worksteal

test-matrix:  ## the tests with the lowest and the newest versions of everything, in environments of their own
	for set in lowest newest; do \
	  rm -rf .matrix/$$set && $(PYTHON) -m venv .matrix/$$set && \
	  .matrix/$$set/bin/python -m pip install --quiet $$(test $$set = lowest && echo "-c constraints-lowest.txt") -e '.[dev]' && \
	  OMP_NUM_THREADS=1 .matrix/$$set/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" || exit 1; \
	done

check:  ## linting and types
	$(PYTHON) -m ruff check src tests benchmarks examples tools
	$(PYTHON) -m mypy

docs:  ## regenerate docs/models.md from a run of the model matrix
	$(PYTHON) benchmarks/model_matrix.py

clean:
	rm -rf .matrix build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
