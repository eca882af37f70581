# make demo: a video on a fresh clone · make test: the tests · make check: ruff, mypy, floors, docs · make bench: timings
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test check docs bench clean

demo: $(VENV)/installed
	@$(BIN)/soragen generate "a red ball bouncing on green grass at sunset" --output demo.mp4 --overwrite

test: $(VENV)/installed-test
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_floors.py tests/test_docs.py

docs: $(VENV)/installed-test
	$(BIN)/python docs/write_cli.py
	$(BIN)/python docs/write_models.py

bench: $(VENV)/installed-bench
	$(BIN)/python bench/generate.py

# An installation is done again only when what it is made from has changed.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e ".[test,check,train]"
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(PIP) -e ".[bench]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) dist demo.mp4
