# The book's commands. `make help` lists them.
# PYTHON=python3.12 chooses an interpreter; without it the first suitable one on the machine is used.
.POSIX:
.SUFFIXES:

VENV = .venv
PY = $(VENV)/bin/python
N =
PYTEST_FLAGS =
BENCH_FLAGS =
FAULTS_FLAGS =
WEIGH_FLAGS =

# Threads that wait by spinning slow a busy machine down tenfold; these sleep.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: help env book pdf epub chapter assignments lab test site-check weigh bench faults \
	gpu-check format lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | \
		while IFS='|' read -r name what; do printf '%-18s %s\n' "$$name" "$$what"; done

env: ## make .venv and install everything into it, once
	@VENV="$(VENV)" PYTHON="$(PYTHON)" sh book/_tools/env.sh

book: env ## execute every notebook and build the site
	@$(PY) book/_tools/build.py

pdf: env ## the book as build/lora-measured.pdf; needs XeLaTeX
	@$(PY) book/_tools/paper.py pdf

epub: env ## the book as build/lora-measured.epub
	@$(PY) book/_tools/paper.py epub

chapter: env ## build one chapter for the one who writes it: make chapter N=8
	@$(PY) book/_tools/build.py --chapter "$(N)"

assignments: book ## write the chapters without solutions, for a class, into build/assignments
	@$(PY) book/_tools/assignments.py

lab: env ## open the chapters in JupyterLab
	@$(PY) -c 'import jupyterlab' 2>/dev/null || \
		$(PY) -m pip install --quiet -c constraints.txt 'jupyterlab>=4.2'
	$(PY) -m jupyterlab notebooks

test: env ## every test that needs neither the built site nor a browser
	@$(PY) -m pytest -m "not site" $(PYTEST_FLAGS)

site-check: env ## test the built pages in headless Chromium
	@$(PY) -m pytest -m site tests/book -n 2 --dist loadfile $(PYTEST_FLAGS)

weigh: env ## weigh the built pages as a phone gets them: seconds, kB, how far the text jumps
	@$(PY) book/_tools/weigh.py $(WEIGH_FLAGS)

bench: env ## time and weigh minilora beside PEFT, loralib and full fine-tuning
	@$(PY) tests/bench/bench.py $(BENCH_FLAGS)

faults: env ## kill saves, fill the disk, damage folders: what load and save must survive
	@$(PY) tests/faults/faults.py $(FAULTS_FLAGS)

# Without env: a machine that is lent for minutes has torch, and no network to install from.
gpu-check: ## on a machine with a CUDA card, are the numbers right there? a minute
	@py=$(PY); [ -x "$$py" ] || py=python3; PYTHONPATH=. "$$py" tests/gpu/gpu_check.py

format: env ## put code and notebooks into the house format, strip outputs
	$(PY) -m nbstripout --keep-id notebooks/*.ipynb book/*.ipynb
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lint: env ## what the checks on a push look at: format, style, stripped outputs, types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m nbstripout --keep-id --verify notebooks/*.ipynb book/*.ipynb
	$(PY) -m mypy

clean: ## remove the built site and the executed notebooks; keeps .venv
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
