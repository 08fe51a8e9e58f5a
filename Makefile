# make setup   the environment in .venv          make test    all tests
# make demo    the whole way on drawn people     make check   style, types
# PY=python3 SETUP=0 uses an interpreter as it is.
SETUP ?= 1
PY ?= .venv/bin/python
SCRATCH ?= 0
DEMO ?= demo

.PHONY: setup demo test check
ifeq ($(SETUP),1)
READY = .venv/ready
endif

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml setup.cfg
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip sync --quiet --python .venv/bin/python requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
	touch $@

demo: $(READY)
	$(PY) tools/make_toy_market.py --preset demo --out data/toy_market
	$(PY) tools/train_pidm.py --config configs/toy_demo$(if $(filter 1,$(SCRATCH)),_scratch).yaml --out runs/toy_market$(if $(filter 1,$(SCRATCH)),_scratch)
	$(PY) tools/synthesize.py --ratio 0.4 --run runs/toy_market$(if $(filter 1,$(SCRATCH)),_scratch)
	$(PY) tools/reproduce_table.py reid --config configs/demo.yaml

test: $(READY)
	$(PY) -m pytest

check: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy --strict pidm_core pidm_reid tools
