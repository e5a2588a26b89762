# make demo    fresh machine -> .venv -> the main job
# make test    fresh machine -> .venv -> all default tests
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo
# What metrics are compared with in tests. Beside the environment: it wants a torchvision, which
# the CPU build of torch does not have, and torchmetrics imports it where it is there.
FIDELITY := .venv/lib/torch-fidelity

# optimum-intel, which reads exported pipelines in the slow tests: it needs an older diffusers.
OPTIMUM := .venv-optimum

.PHONY: demo venv optimum test test-slow lint format docs bench campaign study clean

demo: venv
	$(BIN)/tdquant demo --out $(OUT)

venv: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --target $(FIDELITY) --upgrade torch-fidelity
	touch $@

optimum: $(OPTIMUM)/.ready

# It asks for torchvision, whose wheels do not load beside the CPU build of torch.
$(OPTIMUM)/.ready: constraints-optimum.txt
	$(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-optimum.txt "optimum-intel[openvino,diffusers]" sentencepiece
	$(OPTIMUM)/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

# One process a core with one thread each: threads that share cores wait for each other.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: venv
	$(TEST)

test-slow: venv optimum
	$(TEST) -m "slow or not slow"

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/codespell

format: venv
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: venv
	$(BIN)/mkdocs build --strict

bench: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/transfer.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/integers.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/reconstruct.py
	$(BIN)/python benchmarks/recording.py
	$(BIN)/python -m benchmarks.peers

# About an hour of two cores: damaged files, kill -9, full disks (as root), threads, shapes.
CAMPAIGN := campaign
campaign: venv
	$(BIN)/python -m benchmarks.campaign --out $(CAMPAIGN)

# Hours of two cores if nothing is there yet; each study makes the runs that are missing, and the
# evaluation of the models that fast_forward trains goes on where it was.
TRAINED := studies/models/cats-ddpm-w4a4
study: venv
	for name in movement gain qat fair_lsq ptq distances alternatives fast_forward ablations; do $(BIN)/python studies/$$name.py || exit 1; done
	$(BIN)/python studies/cost.py --threads 2
	for name in claims quantizers; do $(BIN)/python studies/$$name.py || exit 1; done
	$(BIN)/tdquant evaluate cats-ddpm $(TRAINED)-tdq $(TRAINED)-tdq-corrected --pipe cats-ddpm --images 1000 --out runs/study
	$(BIN)/tdquant report studies/results runs/study --out docs/report.html

clean:
	rm -rf .venv $(OPTIMUM) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
