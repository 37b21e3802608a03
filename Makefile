# `make demo` and `make test` need git, make and Python >= 3.11; they build the environment themselves, once.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
# Threads that wait for work must not spin: with a second busy process that would slow a step several times.
RUN := OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_XET=1

.PHONY: demo test test-fast lint clean checkpoints studies cards sample-fasercal sample-superfgd sample-pilarnet

demo: $(STAMP)
	$(RUN) $(VENV)/bin/nufm demo --out runs/demo --overwrite

test: $(STAMP)
	$(RUN) $(VENV)/bin/python -m pytest

test-fast: $(STAMP)
	$(RUN) $(VENV)/bin/python -m pytest -m "not slow"

lint: $(STAMP)
	$(VENV)/bin/ruff check .

# torch first and alone: its pinned version keeps the other packages from pulling a different build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .ruff_cache

# The packaged held-out events, made anew (seed and settings are in the JSON file beside each).
SAMPLES := src/nufm_hub/events/samples

sample-fasercal: $(STAMP)
	$(VENV)/bin/nufm simulate fasercal --events 120 --seed 20261122 --shard-size 120 --workers 2 --out data/fasercal-sample
	cp data/fasercal-sample/fasercal-00000.parquet $(SAMPLES)/fasercal.parquet
	cp data/fasercal-sample/provenance.json $(SAMPLES)/fasercal.json

sample-superfgd: $(STAMP)
	$(VENV)/bin/nufm simulate superfgd --events 400 --seed 20261123 --shard-size 400 --out data/superfgd-sample
	cp data/superfgd-sample/superfgd-00000.parquet $(SAMPLES)/superfgd.parquet
	cp data/superfgd-sample/provenance.json $(SAMPLES)/superfgd.json

sample-pilarnet: $(STAMP)
	$(VENV)/bin/nufm simulate pilarnet --events 60 --seed 20261124 --shard-size 60 --out data/pilarnet-sample
	cp data/pilarnet-sample/pilarnet-00000.parquet $(SAMPLES)/pilarnet.parquet
	cp data/pilarnet-sample/provenance.json $(SAMPLES)/pilarnet.json

# The bundled FASERCal checkpoints, made anew: hours on two cores. Each step resumes where it was interrupted.
CHECKPOINTS := src/nufm_hub/checkpoints
TRAIN := $(RUN) OMP_NUM_THREADS=1 $(VENV)/bin/nufm

checkpoints: $(STAMP)
	$(VENV)/bin/nufm simulate fasercal --events 3000 --seed 1 --workers 2 --out data/fasercal-train
	$(VENV)/bin/nufm simulate fasercal --events 240 --seed 2 --shard-size 120 --workers 2 --out data/fasercal-validation
	$(VENV)/bin/nufm simulate fasercal --events 400 --seed 3 --workers 2 --out data/fasercal-train-2
	$(TRAIN) pretrain --no-relational --events data/fasercal-train --events data/fasercal-train-2 --cpu --out runs/fasercal-mae
	$(TRAIN) pretrain --relational --events data/fasercal-train --events data/fasercal-train-2 --cpu --out runs/fasercal-mae-rel
	for encoder in mae mae-rel; do \
	  rm -rf $(CHECKPOINTS)/fasercal-$$encoder && cp -r runs/fasercal-$$encoder/model $(CHECKPOINTS)/fasercal-$$encoder || exit 1; \
	done
	for task in flavour vertex reconstruction; do \
	  $(TRAIN) finetune $$task --events data/fasercal-train --events data/fasercal-train-2 --validation data/fasercal-validation --cpu \
	    --source nufm/fasercal-mae-rel --out runs/fasercal-mae-rel-$$task || exit 1; \
	  rm -rf $(CHECKPOINTS)/fasercal-mae-rel-$$task; \
	  cp -r runs/fasercal-mae-rel-$$task/model $(CHECKPOINTS)/fasercal-mae-rel-$$task; \
	done

# The evidence, and the particle models that come out of it: hours on two cores. Start it twice to share the runs between two processes.
STUDY := $(RUN) OMP_NUM_THREADS=1 $(VENV)/bin/nufm study
FASERCAL := --events data/fasercal-train --events data/fasercal-train-2

studies: $(STAMP)
	$(VENV)/bin/nufm simulate fasercal --events 1500 --seed 101 --workers 2 --out data/fasercal-seed101
	$(STUDY) baselines --events data/fasercal-seed101 --test $(SAMPLES)/fasercal.parquet
	$(VENV)/bin/nufm simulate fasercal --events 400 --seed 4 --workers 2 --out data/fasercal-test
	$(VENV)/bin/nufm simulate superfgd --events 24000 --seed 11 --out data/superfgd
	$(VENV)/bin/nufm simulate pilarnet --events 3200 --seed 12 --workers 2 --out data/pilarnet
	$(STUDY) data-efficiency $(FASERCAL) --cpu
	$(STUDY) data-efficiency --events data/fasercal-train-2 --budget 300 --tune-budget 300 --tune-learning-rate 0.015 \
	  --tune-learning-rate 0.03 --tune-epochs 2 --out runs/data-efficiency-longer --results model_cards/results/longer --cpu
	$(STUDY) representation $(FASERCAL) --cpu
	$(STUDY) ablation nufm/fasercal-mae-rel-reconstruction --cpu
	for detector in superfgd superfgd-voxels pilarnet; do \
	  $(STUDY) transfer $$detector --events data/$${detector%-voxels} --cpu || exit 1; \
	done
	$(STUDY) crosstalk --cpu
	for run in superfgd/study/n21059-seed0-mae-rel pilarnet/study/n2841-seed0-mae-rel; do \
	  target=$(CHECKPOINTS)/$${run%%/*}-pid; \
	  rm -rf $$target && cp -r runs/transfer-$$run/model $$target && rm $$target/README.md || exit 1; \
	done

# What is said of the bundled checkpoints, measured anew. From a checkout without changes: the results note its revision.
cards: $(STAMP)
	for folder in $(CHECKPOINTS)/*/config.json; do \
	  name=$$(basename $$(dirname $$folder)); \
	  $(TRAIN) evaluate nufm/$$name --cpu --out model_cards/results/$$name.json || exit 1; \
	done
	$(VENV)/bin/nufm card --all
	$(VENV)/bin/python tests/test_baselines.py
