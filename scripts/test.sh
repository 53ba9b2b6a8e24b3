#!/usr/bin/env bash
# Runs the linter and the tests in the environment that scripts/with_env.sh made; arguments go to pytest.
set -euo pipefail
python -m ruff check .
python -m pytest "$@"
cat <<END

all tests passed
environment  $SSGRL_ENVIRONMENT
tests        tests/README.md says what ran (make test, test-all or long-test); real photographs are read from ../shared/data where it exists
END
