PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python
SCENE ?= output/demo_scene
OUT ?= output/demo

.PHONY: demo test lint clean

demo: $(STAMP)
	$(RUN) train.py --demo -s $(SCENE) -m $(OUT) --overwrite

test: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(RUN)
	$(RUN) -m pytest -q

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(RUN)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV)
