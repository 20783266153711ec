# make book   build the book into _build/html    make test   run every test
# make lint   check the style of all code        make clean  remove what make made
# Another Python: make book PYTHON=python3.12
PYTHON ?= python3

VENV := .venv
ENVIRONMENT := $(VENV)/.installed

.PHONY: book test lint clean

book: $(ENVIRONMENT)
	$(VENV)/bin/python scripts/build_book.py

test: $(ENVIRONMENT)
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(ENVIRONMENT)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf _build $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis

$(ENVIRONMENT): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("This book needs Python 3.10 or newer, and $(PYTHON) is %d.%d. Name another: make book PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --upgrade --quiet pip
	$(VENV)/bin/python -m pip install --requirement requirements.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@
