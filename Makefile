# make demo       makes an environment, trains on the embedded digits, prints one table, saves two pictures
# make test       makes the same environment and runs the quick tests, in two processes: every operation, backend and command
# make test-all   those, and then all others that are not long: more shapes, variants and dtypes
# make long-test  the long tests
# make lint       ruff, mypy, import-linter and clang-format
# make docs       the documentation site in docs/_build, an error where a reference or a page is broken
# make wheels     what a release consists of, in dist/: source archive, pure wheel, manylinux wheel, and with nvcc a CUDA wheel
# make gpu-libraries   builds and packs what scripts/gpu_first_contact.sh takes along to a machine with a GPU
# make clean      removes what builds leave; `rm -rf .venv` removes the environment
#
# An active environment (venv or conda) that has torch >= 2.11 is used as it is; otherwise .venv is made.
# PYTHON=/path/to/python3 chooses the interpreter that .venv is made from.

PYTHON ?= python3
export PYTHON

TEST = bash scripts/with_env.sh train,dev,bench,docs,onnx,openvino,int8 -- scripts/test.sh

.PHONY: demo test test-all long-test lint docs wheels gpu-libraries clean

demo:
	@bash scripts/with_env.sh --without-compiler train -- scripts/demo.sh

test:
	@$(TEST) -n 2 --dist worksteal

test-all: test
	@$(TEST) -n 2 --dist worksteal -m 'thorough and not long'

long-test:
	@$(TEST) -m long

lint:
	@bash scripts/with_env.sh train,dev,bench -- scripts/lint.sh

docs:
	@bash scripts/with_env.sh train,docs -- python -m sphinx -n -W --keep-going -q -b html docs docs/_build
	@echo "the site is in docs/_build/index.html"

wheels:
	@bash scripts/with_env.sh dev,release -- scripts/wheels.sh

gpu-libraries:
	@SSGRL_CUDA=1 bash scripts/with_env.sh dev -- scripts/gpu_libraries.sh

clean:
	rm -rf build dist docs/_build *.egg-info ssgrl_fast/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
