# `make demo` and `make test` do all of the set-up themselves; they need Python >= 3.10 and make.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python

.PHONY: setup demo app train-toy test check lock clean

setup: .venv/.ready

.venv/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(RUN) -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(RUN) --no-deps --editable .
	@touch $@

demo: setup
	@echo "== 1. Photographs, captioned by the shipped checkpoint"
	$(BIN)/captioner caption checkpoints/samples --checkpoint checkpoints/flickr8k
	$(BIN)/captioner caption checkpoints/samples/astronaut.jpg --checkpoint checkpoints/flickr8k \
		--attention demo-output/astronaut.png
	@echo "== 2. Training: drawn shapes, about a minute"
	$(MAKE) --no-print-directory train-toy
	@echo
	@echo "Where each word looked: demo-output/astronaut.png; the training curves: runs/toy/curves.png"
	@echo "Now caption your own pictures in the browser: make app"

train-toy: setup
	$(RUN) -m data_prep toy --out data/toy
	rm -rf runs/toy
	$(BIN)/captioner train --config configs/toy.yaml
	$(BIN)/captioner evaluate runs/toy/best --data data/toy --split val
	$(BIN)/captioner caption data/toy/images/toy0_00000.jpg --checkpoint runs/toy/best

app: setup
	$(RUN) -m app --checkpoint checkpoints/flickr8k

test: setup
	$(RUN) -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(RUN) -m pytest -q -m "not slow"

# The constraint holds the pair of torch and torchvision whose Linux wheels fit together.
lock: setup
	{ sed -n '/^#/p' requirements.txt; \
	echo 'torch==2.14.1' | $(BIN)/uv pip compile --quiet --universal --python-version 3.10 \
		--extra test --no-annotate --no-header --constraint - pyproject.toml; } > requirements.new
	mv requirements.new requirements.txt

clean:
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache *.egg-info
