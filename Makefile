# Every target sets up what it needs: Python 3.11 or newer and make are all a fresh machine has to have.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
UV_VERSION := 0.13.8
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url
ARGS ?=

# waiting threads sleep after some 20 microseconds, so that two jobs can share few cores (see geoseg/cli.py)
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 20000
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types floors unit test-slow format lock checkpoints encoders embed embed-encoders records report bench wheel clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | while IFS='	' read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

setup: $(READY) ## .venv with the locked packages and geoseg itself; done by every other target

$(READY): requirements.lock requirements-uv.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "geoseg needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv && $(BIN)/uv --version | grep -qwF "$(UV_VERSION)" \
		|| $(BIN)/python -m pip install --quiet --require-hashes -r requirements-uv.txt
	VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install --require-hashes --compile-bytecode -r requirements.lock
	VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## the main job on embedded checkpoints and synthetic profiles; make demo ARGS="seed=1"
	$(BIN)/geoseg demo $(ARGS)

test: lint types floors unit ## all checks: style, types, floors, tests and notebooks

lint: $(READY) ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## type annotations
	$(BIN)/mypy

floors: $(READY) ## which module may import which
	$(BIN)/lint-imports

unit: $(READY) ## tests and notebooks
	$(BIN)/pytest tests notebooks --nbmake --nbmake-timeout=900

test-slow: $(READY) ## the tests that take minutes each
	$(BIN)/pytest tests -m slow

format: $(READY) ## put the code into its style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY) ## choose versions anew where pyproject.toml asks for it; ARGS=--upgrade takes the newest of all
	$(COMPILE) $(ARGS) --extra dev -o requirements.lock pyproject.toml
	echo uv==$(UV_VERSION) | $(COMPILE) -o requirements-uv.txt -

# the folder of the latest run of an experiment, and where it keeps what it trained: $(call trained,NAME)
latest = $$(dirname "$$(ls -t runs/$(1)/*/record.json | head -n 1)")
trained = $$($(BIN)/python -c 'import json, pathlib, sys; \
	print(pathlib.Path("runs/fits", json.loads(pathlib.Path(sys.argv[1], "record.json").read_text())["fit_id"], "adapter"))' \
	$(call latest,$(1)))

checkpoints: $(READY) ## train the embedded checkpoints anew, six and a half hours on a CPU core, and put them into geoseg/assets
	$(BIN)/geoseg run experiment=demo_autoencoder $(ARGS)
	$(BIN)/geoseg run experiment=demo_base method.model.path=$(call trained,demo_autoencoder)/vae $(ARGS)
	$(BIN)/geoseg run experiment=demo_sam $(ARGS)
	$(BIN)/geoseg run experiment=demo_sam_longer method.model.start=$(call trained,demo_sam) $(ARGS)
	$(MAKE) embed encoders

encoders: $(READY) ## the embedded DINOv2 encoders alone, an hour and a half on a CPU core
	$(BIN)/geoseg run experiment=demo_dinov2 $(ARGS)
	$(BIN)/geoseg run experiment=demo_dinov2_in_domain $(ARGS)
	$(MAKE) embed-encoders

embed: $(READY) ## put the latest trained checkpoints, with cards, into geoseg/assets
	$(BIN)/python -c 'import sys; from geoseg.diffusion.latent_diffusion import LatentDiffusion; \
		LatentDiffusion.load(sys.argv[1]).save("geoseg/assets/stable-diffusion", half=True)' $(call trained,demo_base)
	mkdir -p geoseg/assets/sam && cp $(call trained,demo_sam_longer)/* geoseg/assets/sam/
	$(BIN)/python -m geoseg.demo.examination geoseg/assets
	$(BIN)/python -c 'import sys; from pathlib import Path; from geoseg.report import write_cards; \
		write_cards(dict(zip(sys.argv[1::2], map(Path, sys.argv[2::2]))), Path("geoseg/assets"))' \
		stable-diffusion/vae $(call latest,demo_autoencoder) \
		"stable-diffusion/unet and text_encoder" $(call latest,demo_base) \
		"sam, first half" $(call latest,demo_sam) sam $(call latest,demo_sam_longer)

embed-encoders: $(READY) ## the same for the encoders alone
	mkdir -p geoseg/assets/dinov2 geoseg/assets/dinov2_in_domain
	cp $(call trained,demo_dinov2)/* geoseg/assets/dinov2/
	cp $(call trained,demo_dinov2_in_domain)/* geoseg/assets/dinov2_in_domain/
	$(BIN)/python -m geoseg.demo.probe geoseg/assets
	$(BIN)/python -c 'import sys; from pathlib import Path; from geoseg.report import write_cards; \
		write_cards(dict(zip(sys.argv[1::2], map(Path, sys.argv[2::2]))), Path("geoseg/assets"))' \
		dinov2 $(call latest,demo_dinov2) dinov2_in_domain $(call latest,demo_dinov2_in_domain)

records: $(READY) ## put the records in runs/ into the archives beside the tables; with them a sweep goes on anywhere
	$(BIN)/python experiments/records.py pack

report: $(READY) ## results.csv, tables and figures of every experiment, from the records kept and in runs/ by its README's command
	$(BIN)/python experiments/records.py unpack
	@for readme in experiments/*/README.md experiments/*/*/README.md; do \
		words="$$(sed -n '/^    geoseg report /,/[^\\]$$/p' "$$readme")"; test -n "$$words" || continue; \
		runs="$$(echo "$$words" | grep -o 'runs/[a-z0-9_]*' | head -n 1)"; \
		if test -d "$$runs"; then echo "$$words"; PATH="$(CURDIR)/$(BIN):$$PATH" sh -ec "$$words"; \
		else echo "$$readme: no $$runs here, left as it is"; fi; done

bench: $(READY) ## training and labelling against plain scripts, and what comes around the work; half an hour; ARGS="--only jobs"
	$(BIN)/python experiments/speed/bench.py --to experiments/speed $(ARGS)

wheel: $(READY) ## dist/geoseg-*.whl
	$(BIN)/uv build --wheel --quiet && ls -l dist

clean: ## remove .venv, caches and build output; runs/ stays
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
