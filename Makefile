# InSync's commands. `make demo` and `make test` need Linux, Python 3.10 to 3.12, git and make; everything else goes into .venv.
#
#   make demo     dub the sample through the embedded Triton: demo.mp4 and demo.png
#   make test     ruff, mypy and all tests (this one installs PyTorch; serving and the client never do)
#   make lint     ruff and mypy only
#   make bench    the benchmarks, into benchmarks/results
#   make sample   make samples/ anew (needs espeak-ng)
#   make clean    remove what these commands made
#
# Another interpreter: make PYTHON=python3.12 …    A CPU-only PyTorch, several GB smaller than the CUDA build: name PyTorch's
# index of CPU builds in PIP_EXTRA_INDEX_URL.

# The first interpreter that fits; onnxruntime, DALI and the server's Python stub have to be there for it.
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?=

.PHONY: demo test lint bench sample clean
.DELETE_ON_ERROR:

demo: $(VENV)/.serve
	rm -f demo.mp4 demo.png
	$(BIN)/insync dub samples/sample.mp4 samples/speech.wav -o demo.mp4
	$(BIN)/python samples/side_by_side.py samples/sample.mp4 demo.mp4 -o demo.png
	@echo "demo.mp4 speaks samples/speech.wav; demo.png shows source frames above and synced frames below."

# pytest's closing line stays the last line of the output.
test: lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.all
	$(BIN)/python -m benchmarks.serving.dub_speed
	$(BIN)/python -m benchmarks.serving.ensemble_share
	$(BIN)/python -m benchmarks.serving.adaat_speed
	$(BIN)/python -m benchmarks.serving.runtime_speed
	$(BIN)/insync export precision samples/sample.mp4 --speech samples/speech.wav --seconds 5 -o benchmarks/results/precision
	$(BIN)/python -m benchmarks.faults.faults
	$(BIN)/python -m benchmarks.serving.overload

# matplotlib carries the photograph; only its data folder is read, so nothing that it depends on is installed.
sample: $(VENV)/.serve
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/sample matplotlib
	PYTHONPATH=$(VENV)/sample $(BIN)/python samples/make_sample.py

clean:
	rm -rf $(VENV) demo.mp4 demo.png build dist .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "InSync needs Python 3.10, 3.11 or 3.12, and found none: install one, or name it: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit("InSync needs Python 3.10, 3.11 or 3.12; $(PYTHON) is %d.%d: make PYTHON=… names another" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23"
	@touch $@

# Stamps: a second run installs nothing unless pyproject.toml has changed.
$(VENV)/.serve: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install --quiet -e ".[serve]"
	@touch $@

$(VENV)/.all: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install --quiet -e ".[serve,export,train,loadtest,test]"
	@touch $@ $(VENV)/.serve
