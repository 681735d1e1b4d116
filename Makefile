# `make train`, `make segment`, `make report`, `make bundle`: a demonstration; `make model`: a model of your own cases;
# `make test`: the tests. What is finished is not done again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COHORT := phantoms
RUN := runs/phantom
PHANTOM := Phantom_00017
# Coarse phantoms, so that the demonstration learns within minutes on two cores. At 3 mm there is no
# resampling to smooth for; and a smoothed Dice tells it not to find an enhancing tumour in every case.
PHANTOM_OPTIONS := --cases 40 --shape 80 80 52 --spacing 3 --seed 0
TRAIN_OPTIONS := --preset quick --fold 0 --set preprocessing.spacing_mm=3 \
    --set preprocessing.gaussian_sigma=null --set training.dice_smoothing=100 \
    --set training.max_epochs=15
PRESET := strong
NAME := $(PRESET)

.PHONY: train segment report bundle model test check lint benchmark clean

train: $(COHORT)/datalist.json
	$(BIN)/python -m pipeline.train $(COHORT)/datalist.json $(TRAIN_OPTIONS) \
	    --output-dir $(RUN) --resume

# The eight phantoms of fold 0, which the network has not seen.
segment: $(RUN)/summary.json
	$(BIN)/python -m pipeline.infer -m $(RUN) $(COHORT)/datalist.json --fold 0 -o $(RUN)/masks
	$(BIN)/python -m pipeline.evaluate $(RUN)/masks $(COHORT)/datalist.json --fold 0 -o $(RUN)/scores

# Scores and every case in one HTML file, which is opened from disk.
report: $(RUN)/summary.json
	$(BIN)/python -m pipeline.report $(RUN) $(COHORT)/datalist.json --fold 0 -o $(RUN)/report.html

# Export, then run the bundle on one phantom as users of MONAI do, with the code that the bundle carries.
bundle: $(RUN)/summary.json
	test -d $(RUN)/bundle || $(BIN)/python -m pipeline.export $(RUN) -o $(RUN)/bundle --torchscript --onnx
	cd $(RUN)/bundle && ../../../$(BIN)/python -m monai.bundle run --config_file configs/inference.json \
	    $(foreach name,flair t1 t1ce t2,--$(name) ../../../$(COHORT)/$(PHANTOM)/$(PHANTOM)_$(name).nii.gz) \
	    --output_dir ../bundle-masks

$(RUN)/summary.json:
	$(MAKE) train

# Cross-validation of a data list, and its ensemble in half precision as bundles/NAME, with what bundles/NAME.md says of
# it. OPTIONS are those of pipeline.crossval. Stopped at any point, the same command goes on.
model: $(VENV)/.installed
	$(if $(LIST),,$(error make model LIST=path/to/datalist.json [PRESET=strong] [NAME=strong] [OPTIONS=...]))
	@if test -e bundles/$(NAME); then \
	    echo "bundles/$(NAME) is there already: remove it, or choose another NAME."; \
	else \
	    set -ex; \
	    $(BIN)/python -m pipeline.crossval "$(LIST)" --preset $(PRESET) -o runs/$(NAME) $(OPTIONS); \
	    $(BIN)/python -m pipeline.export runs/$(NAME) -o bundles/$(NAME) --half-precision \
	        $(if $(wildcard bundles/$(NAME).md),--notes bundles/$(NAME).md); \
	fi

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

check: $(COHORT)/datalist.json
	$(BIN)/python -m pipeline.check $(COHORT)/datalist.json

# Ours and what one would write without it, in turn, on an idle machine: an hour. By name: make
# benchmark BENCHMARKS="reading metrics"
benchmark: $(VENV)/.installed
	$(BIN)/python -m benchmarks $(BENCHMARKS)

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

$(COHORT)/datalist.json: | $(VENV)/.installed
	$(BIN)/python -m pipeline.phantom $(COHORT) $(PHANTOM_OPTIONS)
	$(BIN)/python -m pipeline.make_datalist $(COHORT) -o $@ --folds 5 --seed 0

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[test]"
	touch $@

# What the demonstration made. Other runs and models are yours: `make model` takes days to make one.
clean:
	rm -rf $(VENV) $(COHORT) $(RUN)
