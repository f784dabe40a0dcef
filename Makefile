PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-all lint clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

demo: .venv/installed
	$(BIN)/slimrank compress demo --keep 0.6 --samples 128 --window 256 --out demo-compressed --overwrite
	$(BIN)/slimrank evaluate demo demo-compressed --text demo --window 256 --max-windows 128

test: .venv/installed lint
	$(BIN)/python -m pytest -n 2

test-all: .venv/installed lint
	$(BIN)/python -m pytest -n 2 -m 'slow or not slow'

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo-compressed
