# Each target is a line or two that you could type yourself.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1

run: .git .venv/ready     ## the whole pipeline, going on where it was, and its summary
	python -m flows.dvc --wait-for-lock repro
	@cat artifacts/report/summary.txt

report: .git .venv/ready  ## the page, brought up to date and opened; without a display, its path
	python -m flows.dvc --wait-for-lock repro report
	@python -c "import pathlib, webbrowser; page = pathlib.Path('artifacts/report/index.html').absolute(); webbrowser.open(page.as_uri()) or print(page)"

test: .venv/ready         ## everything that CI checks
	ruff check . && ruff format --check .
	lint-imports
	python -m flows.dependencies --check
	mypy
	pytest -n 2 --dist worksteal

explore: .venv/ready      ## a page to read, look up and steer the model's concepts; it prints its address
	exec python -m cocomix explore

flow: .git .venv/ready    ## the same pipeline, as a Prefect flow
	python -m flows.pipeline

ui: .git .venv/ready      ## Prefect's server and UI on this machine, and what runs the pipeline from there
	exec python -m flows.ui

bench: .venv/ready        ## speed and memory, as ratios against named alternatives
	python -m benchmarks.activation_store --json
	python -m benchmarks.attribution --json
	python -m benchmarks.distillation --json
	python -m benchmarks.evaluate --json
	python -m benchmarks.explain --json
	python -m benchmarks.generate --json
	python -m benchmarks.predictions --json
	python -m benchmarks.student_step --json

bench-peers: .venv/ready peers  ## the autoencoder's training against other libraries
	python -m benchmarks.sae_step --json

peers: .peers/sparsify/ready .peers/dictionary-learning/ready .peers/sae-lens/ready  ## their environments, some GB each

.peers/%/ready: benchmarks/peers/%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install --quiet --requirement $<
	touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[pipeline,dev]'  # Python compiles what it imports; pip would take a minute for all
	test -z "$$PYTHONDONTWRITEBYTECODE" || python -m compileall -qq -j 0 .venv/lib || true  # else each process compiles torch
	touch $@

.git:
	@echo "error: no git repository here, which DVC needs: git init makes one" >&2; exit 1

.PHONY: run report test explore flow ui bench bench-peers peers
