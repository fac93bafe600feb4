#!/bin/sh
# Runs the benchmarks and the pending cells of the study on a machine with a GPU and no network:
#
#     sh benchmarks/run_on_gpu.sh build/gpu-bundle.tar.gz MINUTES OUTPUT
#
# `make gpu-bundle` packs the archive. OUTPUT gets the records of the benchmarks and gpu.jsonl, whose lines belong
# in benchmarks/convergence/results. JOBS cells run at once (default: 14).
set -eu
bundle=$1 minutes=$2 output=$3
repository=$(cd "$(dirname "$0")/.." && pwd)
unpacked=$(mktemp -d)
mkdir -p "$output"
tar -xzf "$bundle" -C "$unpacked"
python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$unpacked/site" "$unpacked"/wheels/*.whl
export PYTHONPATH="$repository:$unpacked/site" KERAS_RDROP_CACHE="$unpacked/cache" OMP_NUM_THREADS=1
export KERAS_BACKEND="${KERAS_BACKEND:-torch}"
cp "$repository"/benchmarks/convergence/results/*.jsonl "$output" 2>/dev/null || true  # finished cells are not run again
for benchmark in ${BENCHMARKS-"loss.py" "step.py"}; do
    python3 "$repository/benchmarks/$benchmark" --output "$output"
done
python3 "$repository/benchmarks/convergence/run_study.py" --jobs "${JOBS:-14}" --minutes "$minutes" \
    --output "$output/gpu.jsonl"
