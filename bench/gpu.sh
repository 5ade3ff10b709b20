#!/usr/bin/env bash
# What is to be measured on one GPU, without network and in under ten minutes:
#
#     bench/gpu.sh RESULTS_FOLDER
#
# writes DATE-gpu-*.json there: ours beside HF Trainer and a plain loop at batch 16 and 64, in
# bfloat16, on made-up texts at DistilBERT's size; packing and CUDA graphs beside the length windows.
# With DATASET and MODEL (real ones, local or in the Hub's cache) also the seconds until ours has the
# validation accuracy that Trainer ends an epoch with; FLAGS goes there too: "--learning_rate 1e-4".
set -euo pipefail
results=$1
here=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-python}
export HF_HUB_OFFLINE=1
$python "$here/bench/made_up.py" "$scratch"
job=(--dataset "$scratch/reviews" --model "$scratch/model" --max_length 512)
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

if [ -n "${DATASET:-}" ]; then
    $python "$here/bench/time_to_accuracy.py" --every 100 --json "$name-time-to-accuracy.json" \
        --dataset "$DATASET" --model "$MODEL" --max_validation_samples 2500 \
        --num_train_epochs 1 --mixed_precision bf16 ${FLAGS:-}
fi
