#!/usr/bin/env bash
# The first minutes on a GPU: the most valuable facts first, nothing stops the rest, nothing is built there.
#
#   OUT=FOLDER scripts/gpu_first_contact.sh 1     in 345 s: is it right, how fast, kernel by kernel
#   OUT=FOLDER scripts/gpu_first_contact.sh 2     in 300 s: memory checker, other shapes, hardware counters
#
# The libraries that `make gpu-libraries` packed lie in ssgrl_fast/ beforehand. Each backend has a process of its own, as a
# CUDA error ends every later call of a process. All output, the rows (rows.csv) and the table of measured beside reckoned
# (table.txt) come back as one archive, FOLDER/gpu.tgz, written again after each stage. DEVICE=cpu TINY=--tiny rehearses.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} TINY=${TINY:-} RUN=${1:?1 or 2: which run}
case $RUN in 1) LIMIT=${LIMIT:-345} ;; 2) LIMIT=${LIMIT:-300} ;; *) echo "gpu_first_contact: run 1 or 2, got $RUN" >&2; exit 2 ;; esac
mkdir -p "${OUT:?the folder that takes the archive}"
work=$(mktemp -d)
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$work-cache} CUBLAS_WORKSPACE_CONFIG=:4096:8
save() {
  [[ -s $work/rows.csv ]] && "$PYTHON" -m benchmarks.first_contact --output "$work/rows.csv" --table >"$work/table.txt" 2>/dev/null
  tar czf "$OUT/gpu.tgz" -C "$work" .
}
trap save EXIT
: >"$work/stages.txt"

# stage SECONDS NAME COMMAND...: at most SECONDS and at most the rest of LIMIT; prints the end of its output
stage() {
  local most=$1 name=$2 left=$((LIMIT - SECONDS)) begin=$SECONDS status
  shift 2
  if ((left < 8)); then echo "-- $name: not run, out of time" | tee -a "$work/stages.txt"; return; fi
  timeout --kill-after=3 $((left < most ? left : most)) "$@" >"$work/$name.log" 2>&1
  status=$?
  echo "-- $name: exit status $status after $((SECONDS - begin)) s" | tee -a "$work/stages.txt"
  tail -n 12 "$work/$name.log" | cut -c1-900
  save
}
contact() { stage "$1" "contact-$2-$3" "$PYTHON" -m benchmarks.first_contact "$2" --dtype "$3" --device "$DEVICE" --seconds "$1" --output "$work/rows.csv" $TINY; }
# addopts is emptied because it names pytest-benchmark, which that machine may lack, as it may xdist
pytest=("$PYTHON" -m pytest -q -p no:cacheprovider -o addopts= -m 'not thorough and not long' --tb=line --device "$DEVICE")
"$PYTHON" -c 'import xdist' 2>/dev/null && pytest+=(-n $(($(nproc) * 3 / 4 + 1)))
tests() { stage "$1" "$2" "${pytest[@]}" --maxfail=60 "${@:3}"; }
bench() { stage "$1" "$2" "$PYTHON" -m benchmarks.run --device "$DEVICE" --output "$work/rows.csv" --seconds 1 --no-memory "${@:3}"; }
operations=(tests/functional/test_{semantic_attention,graph_propagation,label_scores,nonfinite}.py)

stage 10 machine sh -c 'nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total --format=csv,noheader; nproc; command -v ncu compute-sanitizer; true'
stage 15 env "$PYTHON" -m ssgrl_fast env
if [[ $RUN == 1 ]]; then
  contact 75 triton bfloat16
  contact 45 cuda bfloat16
  tests 75 tests-triton -k 'triton or kernels' "${operations[@]}" tests/kernels/test_{split_tanh,bfloat16,pool,gated_product}.py
  tests 60 tests-cuda -k 'cuda and not triton' "${operations[@]}" tests/functional/test_graph_propagation_fp8.py
  bench 60 rival --operation head --shape coco --batch 64 --batch 16 --mode infer --dtype bfloat16 --rival handwritten-compiled --rival products
else
  for tool in memcheck racecheck; do
    stage 30 "$tool" compute-sanitizer --tool "$tool" "${pytest[@]}" -x -k 'triton and tiny' tests/functional/test_label_scores.py
  done
  bench 60 vg500 --operation head --shape vg500 --batch 16 --mode infer --dtype bfloat16
  bench 80 training --operation head --shape coco --batch 64 --batch 16 --mode train --dtype bfloat16 --rival triton --rival handwritten-compiled --rival products
  contact 40 triton float32
  stage 40 counters ncu --clock-control none --launch-count 40 --csv "$PYTHON" -m benchmarks.first_contact triton --seconds 6 --output "$work/counted.csv"
fi
save
[[ -s $work/table.txt ]] && cat "$work/table.txt"
echo "$SECONDS s; everything is in $OUT/gpu.tgz"
