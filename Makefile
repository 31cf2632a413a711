# Two commands matter: `make book` and `make test`. Both make their own environment in .venv first, TORCH=cpu
# with the PyTorch that knows no GPU, whose environment is 4 GB smaller; its wheels are at TORCH_INDEX.
PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
INSTALLED := .venv/.installed

# The environment keeps the PyTorch that it was made with.
ifneq ($(TORCH),)
ifeq ($(shell cat $(INSTALLED) 2>/dev/null),pypi)
$(warning .venv has the PyTorch of PyPI, so TORCH=$(TORCH) changes nothing. To switch, remove .venv first)
endif
endif

.DEFAULT_GOAL := help
.PHONY: help book student plain test browser lint bench picture repository clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1 : \2/p' Makefile

book: $(INSTALLED) ## execute the notebooks (smoke) and build the site in _build/html; JOBS=2 runs two at a time
	$(BIN)/python book/tools/build.py $(if $(JOBS),--jobs $(JOBS))

student: $(INSTALLED) ## write the chapters without their solutions into _build/student; SITE=URL: links lead to that site
	$(BIN)/python book/tools/student.py $(if $(SITE),--site "$(SITE)") $(if $(WHEEL),--wheel)

plain: $(INSTALLED) ## write the chapters as plain notebooks, as Colab opens them, into _build/plain/notebooks
	$(BIN)/python book/tools/plain.py _build/plain/notebooks

test: $(INSTALLED) ## run the tests of the package, the notebooks and the build, in two processes; JOBS=4: in four
	$(BIN)/python -m pytest -q --ignore=tests/site -n $(or $(JOBS),2) --dist loadfile

browser: $(INSTALLED) ## test the built site in a headless Chromium (after make book; two to five minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/site/requirements.txt
	$(BIN)/python -m pytest -q -rs tests/site

lint: $(INSTALLED) ## check style, formatting, and that notebooks are stored without outputs
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb book/teacher/*.ipynb

bench: $(INSTALLED) ## measure the speed of all parts against plain references (11 minutes; leave the machine idle)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks --profile

picture: $(INSTALLED) ## draw the README's picture and the site's social card from results/pictures
	$(BIN)/python book/tools/picture.py

repository: ## change the repository's address everywhere: make repository URL=https://github.com/OWNER/NAME
	$(PYTHON) book/tools/repository.py "$(URL)"

clean: ## remove what was built; the environment stays (rm -r .venv removes it)
	rm -rf _build .pytest_cache .ruff_cache wmse.egg-info

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not that. Name one: make book PYTHON=python3.12"; exit 1; }
	@case "$(TORCH)" in ''|cpu) ;; *) \
		echo "TORCH is '$(TORCH)': give cpu, or leave it out for the PyTorch of PyPI"; exit 1;; esac
	$(PYTHON) -m venv .venv
	$(if $(TORCH),$(BIN)/python -m pip install --disable-pip-version-check --index-url "$(TORCH_INDEX)" \
		$$(sed -n 's/^\(torch[^ ]*\).*/\1/p' requirements.txt))
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@[ -e $@ ] && touch $@ || echo "$(or $(TORCH),pypi)" > $@
