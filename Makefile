# make demo, make test: everything a fresh machine needs. May be given: VENV (where to install), PYTHON, TORCH_INDEX (the
# package index for torch, e.g. https://download.pytorch.org/whl/cpu for the small CPU build), and WORKERS (processes that
# share the tests; 0 for none beside pytest itself).
VENV ?= .venv
PYTHON ?= python3
WORKERS ?= auto
# The oldest transformers that pyproject.toml allows, in an environment that takes all else from VENV.
OLDEST := .venv-oldest
OLDEST_TRANSFORMERS := 5.15
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-run
# A worker has one thread, or they would fight for the cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test test-all test-oldest lint bench real-models golden clean

install: $(READY)

$(READY): pyproject.toml constraints.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install  ## patch, calibrate and evaluate the trained model that comes with the package
	$(BIN)/sparsify patch demo-t5 --output-dir $(DEMO) --force
	$(BIN)/sparsify calibrate $(DEMO) --samples 128
	$(BIN)/sparsify eval $(DEMO) --dataset demo

test: install  ## all tests, offline; the ones marked `real` skip without the files that they need
	$(PYTEST) $(TESTS)

test-all: install  ## all tests with the whole matrix of families, methods and ways to use a model
	$(PYTEST) -m 'matrix or not matrix' $(TESTS)

test-oldest: install  ## patching, with the oldest transformers
	$(PYTHON) -m venv $(OLDEST)
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > "$$($(OLDEST)/bin/python $(SITE))/newest.pth"
	$(OLDEST)/bin/python -m pip install --quiet 'transformers==$(OLDEST_TRANSFORMERS).*'
	$(subst $(BIN),$(OLDEST)/bin,$(PYTEST)) $(or $(TESTS),tests/patcher)

lint: install  ## ruff on the sources, mypy on the installed wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m build --quiet --wheel --outdir build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target build/installed build/wheel/*.whl
	MYPYPATH=build/installed $(BIN)/mypy -p hf_sparsify

bench: install  ## times of the native kernels beside torch's dense operations; BENCH=--quick for small sizes
	$(BIN)/python -m hf_sparsify.benchmark.ops $(BENCH)

real-models: install  ## SmolLM2-135M-Instruct and all-MiniLM-L6-v2 as ordinary model folders, for the tests marked `real`
	$(BIN)/python tests/fetch_real_models.py

golden: install  ## rewrite the expected --help texts after a change that was meant
	SPARSIFY_UPDATE_GOLDEN=1 $(BIN)/python -m pytest tests/test_help.py

clean:
	rm -rf build dist $(DEMO) *.egg-info
