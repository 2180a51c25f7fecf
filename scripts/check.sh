#!/usr/bin/env bash
# Lint, format, types and generated files: every hook of .pre-commit-config.yaml on every file.
set -euo pipefail
cd "$(dirname "$0")/.."
pre-commit run --all-files --show-diff-on-failure
