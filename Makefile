# Everything sets itself up: `make reproduce` and `make test` need Python 3.11 to 3.13 and a package index, no more.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
PROFILE ?= demo

.DEFAULT_GOAL := help
.PHONY: help setup reproduce photos test rehearse results notebooks book address lint bench demo-models clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the package and its pinned dependencies into .venv (once; some minutes and gigabytes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

setup: $(INSTALLED)  ## create .venv and install everything, once

reproduce: setup  ## run all notebooks of PROFILE (demo) headlessly; says where tables and figures are
	@$(BIN)/eclip reproduce --profile $(PROFILE)

photos: setup  ## the paper's Tables 1 and 2 on VOC 2012 without training or a GPU: fetches 2.4 GB, then hours of a CPU
	@$(BIN)/eclip reproduce --profile photos --dry-run
	@$(BIN)/eclip data fetch voc2012 ViT-B-32.pt
	@$(BIN)/eclip reproduce --profile photos
	@$(BIN)/python -m eclip_lib.studies.quoted runs/photos

test: setup  ## tests and notebooks (pytest --nbval)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

rehearse: setup  ## the paper profile on a pretend installation under runs/rehearsal, every route compared
	@$(BIN)/python tests/rehearsal.py

results: setup  ## copy the last run's tables and figures to results/
	@$(BIN)/eclip promote --profile $(PROFILE)

notebooks: setup  ## execute the committed notebooks in place (demo)
	@$(BIN)/python tests/in_place.py

book: setup  ## README, notebooks as committed, report and docs as one site: runs/book/index.html
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book]'
	@$(BIN)/python -m sphinx -q -W --keep-going -c docs . runs/book && echo runs/book/index.html

address:  ## write pyproject.toml's address of the repository into README and notebooks
	@new=$$(sed -nE 's#^Repository = "https://github.com/(.*)"#\1#p' pyproject.toml); \
	old=$$(sed -nE 's#.*git clone https://github.com/([^ ]+) .*#\1#p' README.md); \
	sed -i "s#$$old#$$new#g" README.md notebooks/*.ipynb

lint: setup  ## ruff, notebooks included, mypy, and the direction of imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: setup  ## speed and memory of this machine, as ratios
	@$(BIN)/eclip bench --out results/benchmarks/foundation.csv

demo-models: setup  ## train the demo's mini models again (hours on a CPU)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo-models]'
	@for seed in 0 1 2 3 4; do $(BIN)/python data/demo/training/clips.py scenes-ViT-32 --seed $$seed; done
	@for network in scenes-ViT-16 scenes-RN; do $(BIN)/python data/demo/training/clips.py $$network; done
	@$(BIN)/python data/demo/training/clips.py scenes-ViT-32 --scratch
	@for seed in 0 1 2; do for pool in token average max attention; do \
	$(BIN)/python data/demo/training/clips.py scenes-ViT-32-$$pool --seed $$seed || exit 1; done; done
	@$(BIN)/python data/demo/training/arms.py
	@for network in scenes-MoCo scenes-DINO unlocked; do $(BIN)/python data/demo/training/self_supervised.py $$network; done
	@$(BIN)/python data/demo/training/clips.py overview > /dev/null

clean:  ## remove what runs wrote (not .venv)
	rm -rf runs
