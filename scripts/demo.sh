#!/usr/bin/env bash
# Runs the demonstration in the environment that scripts/with_env.sh made.
set -euo pipefail
python -m ssgrl_fast demo "$@"
echo
echo "environment  $SSGRL_ENVIRONMENT"
if [[ $SSGRL_ENVIRONMENT == .venv ]]; then
  echo "next         source .venv/bin/activate, then ssgrl-fast --help or ssgrl-fast env; make test runs the tests"
else
  echo "next         ssgrl-fast --help or ssgrl-fast env; make test runs the tests"
fi
