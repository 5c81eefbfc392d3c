# `make demo` and `make test` do all of the set-up themselves; they need Python >= 3.10 and make.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python

.PHONY: setup demo app train-toy flickr8k test check lock clean

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

# The shipped checkpoint, from the photographs to the scores; what is done is not done again.
# FLICKR8K is a folder with dataset_flickr8k.json and images/.
FLICKR8K ?= flickr8k
PREPARE = $(RUN) -m data_prep karpathy --dataset $(FLICKR8K)/dataset_flickr8k.json \
	--images $(FLICKR8K)/images --mirror
# A phase that was begun goes on, one that is done says so.
PHASE = $(BIN)/captioner train --images $(FLICKR8K)/images --config configs/$(1).yaml \
	$$(test -f runs/$(1)/state.pt && echo --resume)

flickr8k: setup
	$(PREPARE) --out data/flickr8k
	$(call PHASE,flickr8k)
	$(call PHASE,flickr8k_finetune)
	$(PREPARE) --out data/flickr8k_finetuned --encoder-of runs/flickr8k_finetune/best
	$(call PHASE,flickr8k_self_critical)
	$(BIN)/captioner evaluate runs/flickr8k_self_critical/best --data data/flickr8k_finetuned

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
		--extra test --extra benchmarks --no-annotate --no-header --constraint - pyproject.toml; } > requirements.new
	mv requirements.new requirements.txt

clean:
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache *.egg-info
