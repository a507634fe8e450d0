# Two words do everything on a fresh machine: `make study` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
PROFILE ?= $(shell sed -n 's,^profile = ,,p' settings.ini)
export TOKENIZERS_PARALLELISM = false

.PHONY: study test faults export fmt lab clean readme setup
study: setup
	$(BIN)/xstudy run $(PROFILE)

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder

faults: setup
	$(BIN)/python tests/faults/faults.py

setup: .venv/ready
.venv/ready: settings.ini setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar off -e '.[dev]'
	$(BIN)/pip check
	git config core.hooksPath .githooks 2>/dev/null || true
	touch $@

export: setup
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: setup
	$(BIN)/python tests/tools/readme.py

fmt: setup
	$(BIN)/nbqa "ruff format" nbs --line-length 140
	$(BIN)/nbqa "ruff check" nbs --fix --line-length 140
	$(BIN)/ruff format tests setup.py --line-length 140

lab: setup
	$(BIN)/jupyter lab nbs

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
