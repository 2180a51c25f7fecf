#!/usr/bin/env bash
# From nothing to a verified bundle: set up, train a small MoE classifier on scikit-learn's digits,
# export it, and run it in ONNX Runtime without PyTorch. Works in ./quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "Setting up (PyTorch and a C++ build; minutes the first time)"
venv=$(scripts/setup.sh cpu,export,hf,samples | tail -n 1)
PATH="$(cd "$venv" && pwd)/bin:$PATH"

say "Training: samples/01_train_digits.py"
mkdir -p quickstart
python samples/01_train_digits.py quickstart

say "moe-export build model.pt -o bundle --trust --input images=4,64"
(cd quickstart && PYTHONPATH=../samples \
  moe-export build model.pt -o bundle --trust --input images=4,64 --overwrite)

say "Running: samples/02_run_bundle.py"
python samples/02_run_bundle.py quickstart
