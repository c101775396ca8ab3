# The two commands of a newcomer: make demo, make test.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint bench chaos format secrets clean

demo: $(VENV)/installed
	$(BIN)/ghm train -m +sweep=demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Ratios side by side, see docs/losses.md, training.md and sweeps.md; a quarter of an hour, on a machine that does nothing else.
bench: $(VENV)/installed
	$(BIN)/python -m tests.bench.losses
	$(BIN)/python -m tests.bench.training
	$(BIN)/python -m tests.bench.overhead

# Kills, stops, locks, full disks, failing servers, each in a process namespace of its own; an hour.
chaos: $(VENV)/installed
	$(BIN)/python -m tests.chaos

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Reinstalled when the pinned versions change; code changes need no reinstall.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# For docker-compose.yml; made anew, the password would no longer be that of the database.
secrets:
	@test ! -e .env || { echo '.env: exists and is kept; delete it first if its database is gone too' >&2; exit 1; }
	@password=$$($(PYTHON) -c 'import secrets; print(secrets.token_hex(24))') && umask 077 && \
	  sed "s/^\(.*_PASSWORD\)=$$/\1=$$password/" .env.example > .env
	@echo '.env: written'

clean:
	rm -rf runs
