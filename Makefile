# The two commands of a newcomer: make demo, make test.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint bench chaos format secrets backup restore upgrade test-services clean

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
	$(BIN)/python docs/reference.py --check

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

# For docker-compose.yml. What .env holds is kept: made anew, a password would no longer be that of its account.
secrets:
	@$(PYTHON) services/fill_env.py

backup:
	@sh services/backup.sh

restore:
	@sh services/restore.sh $(FROM)

upgrade:
	@sh services/upgrade.sh

# The stack of docker-compose.yml, built, broken and restored; needs a Docker engine with Compose v2.
test-services: $(VENV)/installed
	$(BIN)/python -m pytest -m services tests/services

clean:
	rm -rf runs
