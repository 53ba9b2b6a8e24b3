#!/usr/bin/env bash
# Runs a command in an environment that has this project and the extras it needs.
#
#   scripts/with_env.sh [--without-compiler] EXTRAS -- COMMAND [ARGUMENT...]
#
# An active environment with torch >= 2.11 is used; otherwise .venv is made beside this folder. torch is installed before the
# project, and the project without build isolation, so that torch is fetched once. --without-compiler goes on without the
# compiled kernels where they cannot be built; otherwise that is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH='torch>=2.11,<2.15'
TORCHVISION='torchvision>=0.26,<0.30'
NEEDED_GB=8

say() { printf '%s\n' "$*"; }

without_compiler=no
if [[ ${1:-} == --without-compiler ]]; then
  without_compiler=yes
  shift
fi
if [[ $# -lt 3 || $2 != -- ]]; then
  say "usage: scripts/with_env.sh [--without-compiler] EXTRAS -- COMMAND [ARGUMENT...]" >&2
  exit 2
fi
extras=$1
shift 2

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

has_torch() {
  "$1" - >/dev/null 2>&1 <<'PYTHON_CODE'
import re, sys
from importlib.metadata import version
sys.exit(tuple(map(int, re.findall(r"\d+", version("torch"))[:2])) < (2, 11))
PYTHON_CODE
}

# Sets environment (an active one that has torch, else .venv) and interpreter (of that environment, or the one to make .venv from).
choose_environment() {
  local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} candidate
  if [[ -n $active ]] && is_new_enough python && has_torch python; then
    environment=$active
    interpreter=python
    say "using the active environment $active"
    return
  fi
  [[ -z $active ]] || say "the active environment $active has no Python >= 3.11 with torch >= 2.11: using .venv instead"
  environment=.venv
  for candidate in .venv/bin/python "${PYTHON:-python3}" python3 python3.12 python3.11 python3.13 python3.14; do
    if is_new_enough "$candidate"; then
      interpreter=$candidate
      return
    fi
  done
  interpreter=
}

# Says everything that is missing at once; ends where the command cannot go on.
check_machine() {
  local missing=() free_kb reason
  if [[ -z $interpreter ]]; then
    say "missing: Python 3.11 or newer (PYTHON=/path/to/python3 names one)" >&2
    exit 1
  fi
  if [[ $environment == .venv && $interpreter != .venv/bin/python ]]; then
    "$interpreter" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
      missing+=("the venv module of $interpreter (on Debian and Ubuntu: apt install python3-venv)")
    free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
    ((free_kb >= NEEDED_GB * 1000 * 1000)) ||
      missing+=("${NEEDED_GB} GB of disc for torch and its libraries; $((free_kb / 1000 / 1000)) GB are free in $PWD")
  fi
  if [[ ${SSGRL_SKIP_EXT:-0} == 1 ]]; then
    say "SSGRL_SKIP_EXT=1: no kernels are compiled; the reference backend (plain PyTorch) runs instead"
  else
    reason=$("$interpreter" -c 'import runpy; print(runpy.run_path("ssgrl_fast/backends/build.py")["missing_tool"]() or "")')
    if [[ -n $reason && $without_compiler == yes ]]; then
      say "note: $reason"
      if compgen -G 'ssgrl_fast/_C*.so' >/dev/null; then
        say "note: the fused kernels cannot be built again; those that were built here before are used"
      else
        say "note: the fused kernels cannot be built; the reference backend (plain PyTorch) runs instead"
      fi
      export SSGRL_SKIP_EXT=1
    elif [[ -n $reason ]]; then
      missing+=("$reason; SSGRL_SKIP_EXT=1 goes on without compiled kernels")
    fi
  fi
  if ((${#missing[@]})); then
    printf 'missing: %s\n' "${missing[@]}" >&2
    exit 1
  fi
}

enter_venv() {
  if ! .venv/bin/python -c 'import pip' >/dev/null 2>&1; then
    say "making .venv with $("$interpreter" --version)"
    "$interpreter" -m venv --clear .venv
  fi
  export VIRTUAL_ENV=$PWD/.venv PATH=$PWD/.venv/bin:$PATH
}

install() {
  local pip=(python -m pip install --disable-pip-version-check) torch needed
  if ! has_torch python; then
    say "installing torch: some gigabytes the first time"
    "${pip[@]}" "$TORCH" "$TORCHVISION"
  fi
  torch=torch==$(python -c 'from importlib.metadata import version; print(version("torch"))')
  say "installing ssgrl_fast[$extras]"
  needed=$(python -c 'import runpy; print(*runpy.run_path("ssgrl_fast/backends/build.py")["requirements"](), sep="\n")')
  if [[ $without_compiler == yes ]]; then  # CUTLASS's products take minutes to compile, and a demonstration has no use for them
    needed=$(grep -v cutlass <<<"$needed" || true)
  fi
  # shellcheck disable=SC2086
  "${pip[@]}" --quiet "$torch" 'setuptools>=77' wheel $needed
  "${pip[@]}" --quiet --no-build-isolation "$torch" --editable ".[$extras]"
}

choose_environment
check_machine
if [[ $environment == .venv ]]; then
  enter_venv
fi
install
export SSGRL_ENVIRONMENT=$environment
exec bash "$@"
