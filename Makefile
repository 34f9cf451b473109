# make demo   the main job on a synthetic set: generate, prepare, sweep, report
# make test   the suite; make test-slow the longer checks; make lint format, lint and types; make bench the figures
# make gpu    checks and figures of a machine with an NVIDIA GPU, in under 10 minutes; writes gpu.json
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint bench gpu clean

.venv/.installed: pyproject.toml .ci/pins.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdtvit-ray needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c .ci/pins.txt -e '.[test]'
	touch $@

demo: .venv/.installed
	$(BIN)/kdtvit-ray synth demo/images --patients 48 --images 6 --size 350x230
	$(BIN)/kdtvit-ray prepare demo/images demo/prepared --size 64 --aspect squash
	$(BIN)/kdtvit-ray sweep demo --data demo/prepared --out demo/study

# two files of tests at once: those that start Ray wait half of the time
test: .venv/.installed
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

# some submit a job, which needs more of Ray than a study does, or publish to trackers; MLflow's server asks for an older
# pyarrow and so is installed apart
test-slow: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c .ci/pins.txt -e '.[test,track,cluster]'
	$(PYTHON) -m venv .venv/mlflow-server
	.venv/mlflow-server/bin/pip install --quiet --disable-pip-version-check 'mlflow==3.17.2'
	$(BIN)/python -m pytest -m slow

lint: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.installed
	$(BIN)/python -m tests.benchmarks

gpu: .venv/.installed
	$(BIN)/python -m tests.gpu

clean:
	rm -rf demo .venv
