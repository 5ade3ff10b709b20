#!/usr/bin/env bash
# What is to be measured on one GPU, without network and in under ten minutes:
#
#     bench/gpu.sh RESULTS_FOLDER
#
# writes DATE-gpu-*.json there: ours beside HF Trainer and a plain loop at batch 16 and 64, in
# bfloat16 and at DistilBERT's size; packing and CUDA graphs beside the length windows. DATASET and
# MODEL, given together, take the place of made-up texts and weights: local, or in the Hub's cache.
set -euo pipefail
results=$1
here=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-python}
export HF_HUB_OFFLINE=1
if [ -z "${DATASET:-}" ]; then
    $python "$here/bench/made_up.py" "$scratch"
    DATASET=$scratch/reviews MODEL=$scratch/model
fi
job=(--dataset "$DATASET" --model "$MODEL" --max_length 512)
job+=(--mixed_precision bf16 --max_validation_samples 64)
name=$results/$(date +%F)-gpu
mkdir -p "$results"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader

for batch in 16 64; do
    $python "$here/bench/speed.py" --rounds 3 --batches $((3200 / batch)) --json "$name-speed-$batch.json" \
        --arms "HF Trainer" "HF Trainer, length grouping" "plain Accelerate loop" ours \
        "${job[@]}" --per_device_train_batch_size "$batch"
    $python "$here/bench/packing.py" --json "$name-packing-$batch.json" \
        "${job[@]}" --per_device_train_batch_size "$batch"
done
