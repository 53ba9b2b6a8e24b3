#!/usr/bin/env bash
# Packs the compiled libraries of this tree for scripts/gpu_first_contact.sh, which builds nothing: unpacked in the source tree
# on a GPU's machine, they serve every Python from 3.11 and torch from 2.11 of the same CUDA release, on GPUs of compute
# capability 8.0, 9.0, 10.0 and newer. `make gpu-libraries` builds them first. The facts of the build (_native) are
# for this Python alone: PYTHON=python3.12 make gpu-libraries where that machine has 3.12; elsewhere `env` lacks them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cutlass=$(python -c 'from ssgrl_fast.backends import extension
module, reason = extension.native()
facts = module.build_info() if module else {}
print(facts.get("cutlass", "") if not extension.cuda_library() else "")')
if [[ -z $cutlass ]]; then
  echo "gpu_libraries: the libraries in ssgrl_fast/ have no CUDA kernels with CUTLASS's products: make gpu-libraries" >&2
  exit 1
fi
mkdir -p build
tar czf build/gpu-libraries.tgz ssgrl_fast/_C.abi3.so ssgrl_fast/_C_cuda.abi3.so ssgrl_fast/_native.*.so
echo "build/gpu-libraries.tgz: $(du -h build/gpu-libraries.tgz | cut -f1), with CUTLASS $cutlass; unpack it with tar xzf in the source tree"
