# Every target sets up .venv first, once. ARGS goes to the command behind a target:
#   make report ARGS="--bits 48"      make test ARGS="-k codes"
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p; done))

TWO = -n $(or $(WORKERS),2)

.DEFAULT_GOAL := help
.PHONY: help venv shell demo report reports test test-all lint format chromium grid benchmark lab allowed readme export clean-notebooks docs hooks

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

$(VENV)/.installed: settings.ini setup.py
	@test -n "$(PYTHON)" || { echo "dcwh needs Python 3.11 or newer, and no python3 here is. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $@

venv: $(VENV)/.installed  ## make .venv and install the project with all it needs (5 minutes and 8 GB, once)

shell: venv  ## open a shell in which dcwh, papermill and snakemake are found
	PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)" $${SHELL:-/bin/sh}

# One thread: the network is so small that several wait for each other, for minutes on a busy machine.
# For a large one: make report OMP_NUM_THREADS=8 ARGS="--dataset folder/birds --set data_dir=/data/birds"
report: export OMP_NUM_THREADS ?= 1
report: venv  ## train and evaluate on digits at 16 bits; print where the report is, and its mAP
	$(BIN)/dcwh run --reports runs $(ARGS)

demo: export OMP_NUM_THREADS ?= 1
demo: venv  ## train for two minutes and search in the browser; ARGS=/data/birds: your folder of images
	$(BIN)/python workflow/demo.py $(ARGS)

reports: export OMP_NUM_THREADS ?= 1
reports: venv  ## make reports/ from the tables and from images that are here: a report for each set and code length, the comparison
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python workflow/reports.py $(ARGS)

test: venv  ## run the tests, two at a time; WORKERS=8 more
	$(BIN)/python -m pytest tests -m 'not whole' $(TWO) --dist worksteal $(ARGS)

test-all: venv chromium  ## run the tests that need a browser, a server or an environment of their own
	$(BIN)/python -m pytest tests -m whole $(TWO) --dist loadfile $(ARGS)

lint: venv  ## ruff and mypy, which are part of the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: venv  ## one format for notebooks, tests and scripts
	$(BIN)/ruff format
	$(BIN)/nbdev_export

chromium:  ## install Chromium and its driver with apt-get, where they are missing
	@missing=; command -v chromedriver >/dev/null || missing=chromium-driver; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing="$$missing chromium"; \
	test -z "$$missing" && exit; \
	as_root=$$(test "$$(id -u)" = 0 || command -v sudo || echo no); \
	if command -v apt-get >/dev/null && test "$$as_root" != no && $$as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -y -qq $$missing; then exit; fi; \
	echo "The tests of the page need $$missing, which could not be installed here. Install Chromium (or Google Chrome) and a chromedriver of the same version, both on the PATH, then: make test-all" >&2; exit 1

grid: venv  ## run every combination of a grid, GRID=smoke or another of workflow/grids; what is done is not done again
	@test -f "workflow/grids/$(or $(GRID),smoke).yaml" || { echo "there is no grid $(GRID); GRID is one of: $$(cd workflow/grids && ls *.yaml | sed 's/.yaml//' | tr '\n' ' ')" >&2; exit 1; }
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --configfile workflow/grids/$(or $(GRID),smoke).yaml --cores $(or $(CORES),2) $(ARGS)

benchmark: venv  ## measure beside what people use, on a quiet machine; writes benchmarks/*.csv; ARGS="-k training" a part
	@mkdir -p .benchmarks
	$(BIN)/python -m pytest benchmarks --benchmark-json=.benchmarks/evaluation.json --benchmark-columns=min,rounds $(ARGS)
	$(if $(ARGS),,$(BIN)/python benchmarks/scaling.py)
	$(if $(ARGS),,$(BIN)/python benchmarks/parts.py)
	$(if $(ARGS),,$(BIN)/python benchmarks/precision.py)
	$(if $(ARGS),,$(BIN)/python benchmarks/on_ray.py)

lab: allowed venv  ## open the notebooks in JupyterLab, reachable from this machine only
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs $(ARGS)

allowed:
	@test "$$(id -u)" != 0 || case "$(ARGS)" in *allow?root*) ;; *) echo "JupyterLab does not start for root unless it is told to: be another user, or say make lab ARGS=--allow-root" >&2; exit 1;; esac

export: venv  ## write dcwh/*.py from the notebooks
	$(BIN)/nbdev_export

clean-notebooks: venv  ## drop run times, counters and other noise from the notebooks
	$(BIN)/nbdev_clean

readme: venv  ## write README.md from nbs/index.ipynb
	$(BIN)/python workflow/readme.py

docs: venv  ## build the website into docs/_build/html, offline: open index.html there
	$(BIN)/python docs/build.py $(ARGS)

hooks: venv  ## clean notebooks on every save in JupyterLab, merge them cell by cell in git
	PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_install_hooks
