#!/usr/bin/env bash
# Checks Python and C++ sources, and which folder imports which, in the environment that scripts/with_env.sh made.
set -euo pipefail
python -m ruff check .
python -m mypy
lint-imports --no-cache
git ls-files --cached --others --exclude-standard 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/support/cuda_emulator/*' | xargs clang-format --dry-run --Werror
echo "ruff, mypy, import-linter and clang-format found nothing"
