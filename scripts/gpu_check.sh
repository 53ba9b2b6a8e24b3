#!/usr/bin/env bash
# Checks and measurements on a machine with a GPU, in under 8 minutes: installation, parity of all backends on the GPU,
# the standard tables, and the figures.
#
#   scripts/gpu_check.sh [FOLDER]
#
# Writes rows to FOLDER/<gpu>.csv, figures beside them and all output to FOLDER/log.txt (default: benchmarks/results).
# PYTHON is the interpreter, with torch, rich and matplotlib installed. SSGRL_SKIP_EXT=1 compiles nothing; the products of
# compute capability 9.0 need nvidia-cutlass or SSGRL_CUTLASS (setup.py). A step that exceeds its time is stopped and the
# next one starts; the rows of a case are written as soon as it is measured.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-470}
MARGIN=${MARGIN:-10} # a step does not start with fewer seconds left
failed=()

reason=$("$PYTHON" -c 'from benchmarks.harness import gpu; print(gpu.missing() or "")' 2>&1) || {
  echo "gpu_check: $PYTHON cannot ask torch for a GPU: ${reason##*$'\n'}" >&2
  exit 1
}
if [[ -n $reason ]]; then
  echo "gpu_check: $reason" >&2
  exit 1
fi
folder=${1:-benchmarks/results}
mkdir -p "$folder"
exec > >(tee "$folder/log.txt") 2>&1
csv="$folder/$("$PYTHON" -c '
import re, torch
print(re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-"))').csv"

# step SECONDS NAME COMMAND...: runs a command for at most SECONDS and at most the rest of LIMIT
step() {
  local most=$1 name=$2 left=$((LIMIT - SECONDS)) status
  shift 2
  if ((left < MARGIN)); then
    echo "== $name: not run, the $LIMIT s are over"
    failed+=("$name (not run)")
    return
  fi
  echo "== $name (at $SECONDS s, at most $((left < most ? left : most)) s)"
  timeout --kill-after=5 $((left < most ? left : most)) "$@"
  status=$?
  ((status == 0)) || failed+=("$name (exit status $status$([[ $status == 124 ]] && echo ', out of time'))")
}

bench() { # bench SECONDS NAME OPTIONS...
  local most=$1 name=$2
  shift 2
  step "$most" "$name" "$PYTHON" -m benchmarks.run --device cuda --output "$csv" "$@"
}

step 200 "install" "$PYTHON" -m pip install -q --no-build-isolation --no-deps -e .
step 90 "parity of all backends" "$PYTHON" -m benchmarks.parity --device cuda --rivals
step 90 "the operations' tests on the GPU" "$PYTHON" -m pytest -q -p no:cacheprovider -m "not long" --device cuda \
  tests/functional/test_{semantic_attention,graph_propagation,graph_propagation_fp8,label_scores,head_chain,nonfinite}.py \
  tests/kernels/test_{split_tanh,bfloat16,pool,gated_product}.py
bench 130 "COCO, B = 16, every rival" --shape coco --batch 16 --dtype bfloat16 --compile --seconds 3
bench 80 "latency and large batches" --shape coco --batch 1 --batch 64 --dtype bfloat16 --dtype float32 --seconds 1
bench 40 "tf32" --shape coco --batch 16 --dtype tf32 --seconds 1
bench 90 "scaling to C = 9,605" --scaling --batch 16 --dtype bfloat16 --seconds 1
bench 70 "the whole network" --operation network --seconds 2
step 30 "pictures" "$PYTHON" -m benchmarks.plot "$csv" --output "$folder"

echo "== $SECONDS s; rows in $csv"
echo "not measured here, because they take minutes to compile: the compiled and captured steps of the network:"
echo "  $PYTHON -m benchmarks.run --device cuda --operation network --compile --output $csv"
if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
