# Everything happens in .venv, which the first command makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What Python has compiled is kept: tests start hundreds of processes, and pytest's own assertions take a third of the
# time in which tests are collected.
export PYTHONDONTWRITEBYTECODE :=

# Tests run in so many processes side by side (ARGS="-n 0": in one), then those that want the machine for themselves.
# That ARGS choose none of the one or the other is no failure; without ARGS it is.
WORKERS ?= 2
SIDE_BY_SIDE := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
ALONE := $(BIN)/python -m pytest
OR_NONE := $(if $(ARGS),|| [ $$? = 5 ])

UNITS := $(addprefix tests/,architectures engine executor loading media parts text tools)

.PHONY: demo check test parallel triton values requests clients sanitize lint format docs bench clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Octavo needs Python 3.11 or newer; this is %d.%d. Say which: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt torch
	OCTAVO_INSTRUCTIONS=none $(BIN)/pip install --disable-pip-version-check -c constraints.txt \
	  --config-settings editable_mode=compat -e '.[dev]'  # else a folder that holds a clone hides the package
	$(BIN)/python setup.py -q build_ext --inplace  # the core, where its progress is seen
	touch $(READY)

demo: $(READY)  ## fetch a small real model, and let it write
	$(BIN)/octavo generate "What is photosynthesis?" --max-tokens 100

check: $(READY)  ## what every commit passes, in three minutes: units, and one variant of every golden case
	$(SIDE_BY_SIDE) -m "not slow and not alone" $(UNITS) tests/test_golden.py $(ARGS) $(OR_NONE)
	$(ALONE) -m "not slow and alone" $(UNITS) $(ARGS) $(OR_NONE)

test: $(READY)  ## all tests, with every instruction set that can be compiled; ARGS="-k name" for some
	OCTAVO_INSTRUCTIONS=all $(BIN)/python setup.py -q build_ext --inplace
	$(SIDE_BY_SIDE) -m "not alone" $(ARGS) $(OR_NONE)
	$(ALONE) -m alone $(ARGS) $(OR_NONE)

PARALLEL := $(addprefix tests/,test_parallel.py parts/test_split_invariance.py parts/test_split_recorded.py)
parallel: $(READY)  ## every golden case in several processes, in all layouts and number types (`make test`: some of them)
	$(ALONE) $(PARALLEL) --all-layouts $(ARGS)

INTERPRETED := $(addprefix tests/,ops loading/test_triton_quantized.py test_triton_models.py test_triton_features.py)
triton: $(READY)  ## operations, and a case of every text row, by Triton's kernels under its interpreter (`make test`: some)
	$(SIDE_BY_SIDE) $(INTERPRETED) --interpreted -k triton $(ARGS)

values: $(READY)  ## every wrong value of every key of every row's config.json (`make test`: half of them in each row)
	$(SIDE_BY_SIDE) tests/architectures/test_wrong_values.py --all-values $(ARGS)

requests: $(READY)  ## thousands of random requests of the server's OpenAPI document (`make test`: hundreds, and every bound)
	$(ALONE) tests/server/test_schema.py --all-requests $(ARGS)

# Each in an environment of its own under build/clients: together they would take many minutes and gigabytes of .venv.
clients: $(READY)  ## programs that use such servers, or vLLM, installed from PyPI and run; ARGS="--only litellm" for some
	PYTHONPATH=. $(BIN)/python tests/compat/clients/run.py --write $(ARGS)

SANITIZED := build/sanitized
# With -O3, GCC takes minutes for a file of products when it has checks to place between.
CHECKS := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
SETS := $$($(BIN)/python -c 'from octavo.ops.native.library import INSTRUCTIONS, runnable; \
  print(",".join({*runnable()[:1], "base"} | ({"avx2", "amx"} & {*INSTRUCTIONS})))')
# The core's own tests with a build that stops at a wrong address or undefined behaviour: the machine's best
# instruction set, the one that every machine has, and (x86-64) AVX2 and AMX, whose instructions C++ stands in for.
sanitize: $(READY)  ## the compiled core's tests under sanitizers; SETS=avx2 (some minutes) for one instruction set
	CXXFLAGS="$(CHECKS) -DOCTAVO_EMULATE_TILES" LDFLAGS="$(CHECKS)" OCTAVO_INSTRUCTIONS=$(SETS) \
	$(BIN)/python setup.py -q build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 OCTAVO_CORE=$(SANITIZED)/octavo/ops/native \
	$(SIDE_BY_SIDE) tests/ops tests/loading/test_fuzz.py -k "not torch and not triton and not graph_steps" -p no:cacheprovider $(ARGS)

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --follow-imports silent bench/*.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the tables that are made from the code
	$(BIN)/python docs/tables.py

bench: $(READY)  ## against peers on this machine, into README and docs; ARGS="--peer vllm=PYTHON --threads 1,2" for more
	$(BIN)/python bench/peers.py --write $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
