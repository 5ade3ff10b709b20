#!/usr/bin/env bash
# What is to be measured on one GPU, without network, in about ten minutes (not run on a GPU yet):
#
#     bench/gpu.sh RESULTS_FOLDER
#
# writes DATE-gpu-*.json there: train.py beside HF Trainer and a plain loop at batch 16 and 64, in
# bfloat16, on made-up texts at DistilBERT's size; and packing and CUDA graphs beside length windows.
#
# With DATASET and MODEL in the environment (real ones, by absolute path or in the Hub's cache) also
# the seconds until train.py has the validation accuracy that Trainer has after an epoch; FLAGS, such
# as "--learning_rate 1e-4", are for that.
set -euo pipefail
: "${1:?usage: bench/gpu.sh RESULTS_FOLDER}"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
mkdir -p "$1"
results=$(realpath "$1")
[ -z "${DATASET:-}" ] || : "${MODEL:?goes with DATASET}"
here=$(realpath "$(dirname "$0")")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=$(command -v "${PYTHON:-python}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
export HF_HUB_OFFLINE=1
cd "$scratch" # so that the commands in the results name no folder of this machine
$python "$here/made_up.py" .
job=(--dataset texts --model model --max_length 512)
job+=(--mixed_precision bf16 --max_validation_samples 64)
name=$results/$(date +%F)-gpu

for batch in 16 64; do
    $python "$here/speed.py" --rounds 3 --batches $((3200 / batch)) \
        --arms "HF Trainer" "HF Trainer, length grouping" "plain Accelerate loop" ours \
        --json "$name-speed-$batch.json" "${job[@]}" --per_device_train_batch_size "$batch"
    $python "$here/packing.py" --json "$name-packing-$batch.json" \
        "${job[@]}" --per_device_train_batch_size "$batch"
done

if [ -n "${DATASET:-}" ]; then
    $python "$here/time_to_accuracy.py" --every 100 --json "$name-time-to-accuracy.json" \
        --dataset "$DATASET" --model "$MODEL" --max_validation_samples 2500 \
        --num_train_epochs 1 --mixed_precision bf16 ${FLAGS:-}
fi
