# Every target does its own set-up; needed are Python >= 3.10 and make.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
CHECKPOINT := checkpoints/coco_flickr8k

.PHONY: setup demo app train-toy coco_flickr8k test coverage check lock clean

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
	@echo "== 1. Sample images, captioned by the shipped checkpoint"
	$(BIN)/captioner caption checkpoints/samples --checkpoint $(CHECKPOINT)
	$(BIN)/captioner caption checkpoints/samples/000000000785.jpg --checkpoint $(CHECKPOINT) \
		--attention demo-output/attention.png
	@echo "== 2. Training: drawn shapes, about a minute"
	$(MAKE) --no-print-directory train-toy
	@echo
	@echo "Attention of each word: demo-output/attention.png; training curves: runs/toy/curves.png"
	@echo "Now caption your own images in the browser: make app"

train-toy: setup
	$(RUN) -m data_prep toy --out data/toy
	rm -rf runs/toy
	$(BIN)/captioner train --config configs/toy.yaml
	$(BIN)/captioner evaluate runs/toy/best --data data/toy --split val
	$(BIN)/captioner caption data/toy/images/toy0_00000.jpg --checkpoint runs/toy/best

# Reproduce the shipped checkpoint. COCO and FLICKR8K are folders that hold images/ and Karpathy's
# dataset_*.json. Called again after a stop, it resumes where it stopped.
COCO ?= coco
FLICKR8K ?= flickr8k
karpathy = $(RUN) -m data_prep karpathy --images $(1)/images \
	--dataset $(or $(firstword $(wildcard $(1)/dataset_*.json)),$(1)/dataset_coco.json)
# An unfinished phase resumes; a finished one says so.
phase = $(BIN)/captioner train --config configs/$(1).yaml \
	--images '[$(COCO)/images, $(FLICKR8K)/images]' \
	$$(test -f runs/$(1)/state.pt && echo --resume)
CNN := runs/coco_flickr8k_finetune/best
BEST := runs/coco_flickr8k_self_critical_features/best

coco_flickr8k: setup
	$(call karpathy,$(COCO)) --image-size 288 --out data/coco_subset
	$(call karpathy,$(FLICKR8K)) --image-size 288 --out data/flickr8k
	$(call phase,coco_flickr8k)
	$(call phase,coco_flickr8k_finetune)
	$(call phase,coco_flickr8k_self_critical)
	$(call karpathy,$(COCO)) --mirror --encoder-of $(CNN) --out data/coco_subset_finetuned
	$(call karpathy,$(FLICKR8K)) --mirror --encoder-of $(CNN) --out data/flickr8k_finetuned
	$(call phase,coco_flickr8k_self_critical_features)
	$(BIN)/captioner evaluate $(BEST) --data data/coco_subset_finetuned --split val
	$(BIN)/captioner evaluate $(BEST) --data data/flickr8k_finetuned --split val

app: setup
	$(RUN) -m app --checkpoint $(CHECKPOINT)

test: setup
	$(RUN) -m pytest --durations=10

# `fail_under` in pyproject.toml is the floor; raise it when the figure has risen.
coverage: setup
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage report

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(RUN) -m pytest -q -m "not slow"

# The constraint keeps the pair of torch and torchvision whose Linux wheels fit together.
lock: setup
	{ sed -n '/^#/p' requirements.txt; \
	echo 'torch==2.14.1' | $(BIN)/uv pip compile --quiet --universal --python-version 3.10 \
		--extra test --extra benchmarks --no-annotate --no-header --constraint - pyproject.toml; } > requirements.new
	mv requirements.new requirements.txt

clean:
	rm -rf .venv demo-output .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
