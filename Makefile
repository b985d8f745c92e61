# The commands of this project; CI calls these and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.ready

.PHONY: image demo setup check format test test-slow test-gpu template docs shapes clean

image: $(SETUP)  ## an edited picture and its comparison, with the bundled model
	$(BIN)/t2iedit generate "a red circle and a blue square on a white background" \
	    -e decor undesired="a red circle" --seed 3 -o out/edited.png
	$(BIN)/t2iedit compare "a red circle and a blue square on a white background" \
	    -e decor undesired="a red circle" --seeds 0..3 -o out/comparison.png

demo: $(SETUP)  ## the page on http://127.0.0.1:7860; DEMO="-m FOLDER" for another model
	$(BIN)/python demos/app.py $(DEMO)

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(SETUP)

check: $(SETUP)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(SETUP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(SETUP)  ## under ten minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow"

test-slow: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

test-gpu: $(SETUP)  ## what needs CUDA; nothing elsewhere
	$(BIN)/python -m pytest -m gpu

template: $(SETUP)  ## build the wheel, install it and a third-party plugin elsewhere, and find the plugin
	sh plugins/template/check.sh $(BIN)/python

docs: $(SETUP)  ## the reference, from the docstrings
	$(BIN)/python docs/reference.py

clean:
	rm -rf $(VENV) dist build out
