PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python
SCENE ?= output/demo_scene
OUT ?= output/demo
CITY ?= output/city_scene
CITY_OUT ?= output/city
# processes that test; each has one thread, as images are tiny, and some wait for others
WORKERS ?= 3

.PHONY: demo demo-city test lint suite docs mutants clean

demo: $(STAMP)
	$(RUN) train.py --demo -s $(SCENE) -m $(OUT) --overwrite

# a district in four blocks and in one piece, in a few minutes on a CPU
demo-city: $(STAMP)
	test -d $(CITY) || $(RUN) -m gs.data.demo --city $(CITY) --views 48 --width 112 --height 84 \
		--points 2500 --blocks_x 2 --blocks_y 2
	$(RUN) train.py -s $(CITY) -m $(CITY_OUT)_one_piece --eval --method 3dgs --iterations 300 --overwrite
	$(RUN) train.py -s $(CITY) -m $(CITY_OUT) --eval --method 3dgs --iterations 300 --overwrite \
		--blocks 4 --report
	$(RUN) -m gs.seams -m $(CITY_OUT) --one_piece $(CITY_OUT)_one_piece
	$(RUN) -m gs.report -m $(CITY_OUT) --baseline $(CITY_OUT)_one_piece

# side by side: types take one process half a minute
test: $(STAMP)
	$(MAKE) --no-print-directory -j2 lint suite

# compiled files are kept, whatever the shell says: each worker and program would make them anew
suite: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check -q .
	$(VENV)/bin/pyright --pythonpath $(RUN)

# the site, build/site/index.html
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict -q

# by hand: an hour or two on two cores
mutants: $(STAMP)
	$(RUN) tests/mutation

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV)
