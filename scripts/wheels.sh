#!/usr/bin/env bash
# Builds what a release consists of, in dist/ or the folder named: the source archive, a pure wheel, a wheel with the CPU kernels
# for every Python from 3.11 on, tagged manylinux by auditwheel, and where nvcc is present one with the CUDA kernels in dist/cuda.
# The libraries of PyTorch are not copied into a wheel: it finds those of the torch that is installed beside it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-dist}
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
export SSGRL_ABI3=1 SSGRL_RELEASE=1

build() { python -m build --no-isolation --outdir "$@" .; }

manylinux() { python -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcu*' --wheel-dir "$2" "$1"/*linux_x86_64.whl; }

SSGRL_SKIP_EXT=1 SSGRL_ABI3=0 build "$out" --sdist --wheel
SSGRL_CUDA=0 build "$raw/cpu" --wheel
manylinux "$raw/cpu" "$out"
if command -v nvcc >/dev/null; then
  SSGRL_CUDA=1 build "$raw/cuda" --wheel
  manylinux "$raw/cuda" "$out/cuda"  # the same name as the CPU wheel: for a folder or index of its own
else
  echo "no nvcc: no CUDA wheel was built"
fi
python -m twine check --strict "$out"/*.whl "$out"/*.tar.gz
