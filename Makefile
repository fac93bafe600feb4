# The two commands: `make demo` and `make test`. Both set up their own environment in .venv.
PYTHON ?= python3
KERAS_BACKEND ?= tensorflow
MINUTES ?= 60
# Processes of the quick tests, the sweep and the study. A test process takes 1 to 3 GB.
WORKERS ?= 2
BACKENDS := tensorflow jax torch
# TensorFlow would report every GPU library that is missing.
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Without bytecode on disk, each of the many processes of the tests would compile Keras and TensorFlow for 20 s.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-keras behaviour sweep evidence gpu-bundle pages notebooks coverage lint docs wheel \
	release-notes clean

# 400 labels, and the row passes of 200 updates of plain training: a budget of 4 in the study, which found a lower NLL
# with R-Drop there.
demo: $(VENV)/.demo-$(KERAS_BACKEND)
	KERAS_BACKEND=$(KERAS_BACKEND) $(BIN)/python examples/text_classification.py --compare --rows 400 --batch-size 16 \
		--epochs 4
	@echo; echo "The study, with ten seeds. A budget of 1 is 50 updates of plain training:"
	@awk '/^## /{show=$$0=="## text, 400 labels"} show && /^- /{printf "%s%s", sep, $$0; sep="\n"} \
		show && /^  /{sub(/^ /, ""); printf "%s", $$0} END{print ""}' docs/evidence.md | fold -s -w 80

# $(call on_each_backend,COMMAND) runs a command with each backend.
on_each_backend = set -e; for backend in $(BACKENDS); do echo "== $$backend"; KERAS_BACKEND=$$backend $(1); done
PYTEST_IN_PARALLEL := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# The tests train tiny models for a few steps, so XLA's optimizations would cost more than they save. The slow tests and
# the behaviour table run with them.
test test-keras sweep: export XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true

# On one backend: make test BACKENDS=jax
test: $(VENV)/.test
	$(call on_each_backend,$(PYTEST_IN_PARALLEL))

test-slow: $(VENV)/.test
	$(call on_each_backend,$(BIN)/python -m pytest -m slow)

# The quick tests with another Keras: a version, or a folder with a source checkout.
test-keras: $(VENV)/.test
	test -n "$(KERAS)" || { echo "Expected KERAS=VERSION or KERAS=FOLDER"; exit 1; }
	test -d "$(KERAS)" || $(BIN)/python -m pip install --quiet --no-deps --target build/keras-$(KERAS) keras==$(KERAS)
	keras=$$(test -d "$(KERAS)" && echo "$(KERAS)" || echo build/keras-$(KERAS)); \
	$(call on_each_backend,PYTHONPATH=$$keras $(PYTEST_IN_PARALLEL))

# Every row of the behaviour table with every kind of base, bad input, and the page that shows it.
behaviour: $(VENV)/.test
	$(call on_each_backend,$(BIN)/python -m pytest -m "slow or not slow" tests/behaviour \
		--junitxml=build/behaviour-$$backend.xml)
	$(BIN)/python tests/behaviour/render.py build/behaviour-*.xml > docs/behaviour.md

# Does RDropModel train every model that Keras trains? One family: `make sweep FAMILY=Bert`. A part of the models, which
# takes less than 10 minutes per backend: `make sweep SHARD=1/6`.
FAMILY ?= test
sweep: $(VENV)/.test
	$(call on_each_backend,OMP_NUM_THREADS=1 $(PYTEST_IN_PARALLEL) -m slow tests/sweep -k "$(FAMILY)" \
		--junitxml=build/sweep-$$backend.xml || true)
	$(BIN)/python tests/sweep/models_page.py build/sweep-*.xml > docs/models.md

# What benchmarks/run_on_gpu.sh needs on a machine with a GPU and no network.
gpu-bundle: $(VENV)/.test
	$(BIN)/python benchmarks/gpu_bundle.py build/gpu-bundle.tar.gz

# Does R-Drop help? Runs what has no result yet, for so many minutes, and renders the results of all. The study does not
# mix backends, and its results are from PyTorch. With these settings, glibc reuses the memory of large temporaries, such
# as those of the optimizer, which saves 14 % of the time of a cell.
evidence: export MALLOC_MMAP_THRESHOLD_ := 4294967296
evidence: export MALLOC_TRIM_THRESHOLD_ := 17179869184
evidence: export MALLOC_TOP_PAD_ := 268435456
evidence: $(VENV)/.test
	KERAS_BACKEND=torch OMP_NUM_THREADS=1 $(BIN)/python benchmarks/convergence/run_study.py \
		--minutes $(MINUTES) --jobs $(WORKERS)
	$(BIN)/python benchmarks/convergence/render_study.py

# The pages and pictures that show results, from the results alone.
pages: $(VENV)/.test
	$(BIN)/python benchmarks/render.py
	$(BIN)/python benchmarks/examples.py
	$(BIN)/python benchmarks/plot.py
	$(BIN)/python benchmarks/convergence/render_study.py
	$(BIN)/python benchmarks/short_runs/render_short_runs.py

# The notebooks from their scripts, with outputs. They run on JAX unless KERAS_BACKEND is set.
notebooks: $(VENV)/.test
	$(BIN)/python docs/notebooks.py

coverage: $(VENV)/.test
	mkdir -p build
	$(call on_each_backend,$(BIN)/coverage run --data-file=build/.coverage.$$backend -m pytest)
	$(BIN)/coverage combine --data-file=build/.coverage build/.coverage.*
	$(BIN)/coverage report --data-file=build/.coverage

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# The site, in build/site: a broken link is an error.
docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

# The source distribution and the wheel from it, in dist/. The wheel then trains a model in an empty environment.
wheel:
	rm -rf dist
	$(PYTHON) -m venv --clear build/empty
	build/empty/bin/python -m pip install --quiet --constraint constraints.txt build hatchling
	build/empty/bin/python -m build --no-isolation
	$(PYTHON) -m venv --clear build/empty
	build/empty/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[$(KERAS_BACKEND)]" scikit-learn
	KERAS_BACKEND=$(KERAS_BACKEND) build/empty/bin/python -m keras_rdrop
	KERAS_BACKEND=$(KERAS_BACKEND) build/empty/bin/python examples/minimal.py build/digits.keras

# The section of the changelog for a version with a date, such as TAG=v0.1.0.
release-notes:
	awk '/^## /{found = index($$0, "## $(TAG:v%=%) (2") == 1; any += found} found && !/^## /; \
		END{if (!any) {print "Expected a section \"## $(TAG:v%=%) (DATE)\" in CHANGELOG.md" > "/dev/stderr"; exit 1}}' CHANGELOG.md

clean:
	rm -rf $(VENV) build dist

$(VENV)/.demo-$(KERAS_BACKEND): EXTRAS := $(KERAS_BACKEND),examples
$(VENV)/.test: EXTRAS := tensorflow,jax,torch,examples,test,docs

# uv is six times as fast as pip, but it does not read pip's settings. If it fails without them, pip installs.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null)}" \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[$(EXTRAS)]" \
		|| $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
