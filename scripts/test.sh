#!/usr/bin/env bash
# Set up, then run every test, Python and C++.
#   scripts/test.sh         what CI runs
#   scripts/test.sh --fast  without sanitizers and without the quickstart in a fresh environment
#   scripts/test.sh --all   also tests marked slow
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-}
say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

# Machine code for two kinds of GPU: what the tests look at. With --all and
# MOE_EXPORT_CUDA_TARGETS=80,90,100,103,120,121 they look at, and run, every kind's kernels.
export MOE_EXPORT_CUDA_TARGETS=${MOE_EXPORT_CUDA_TARGETS:-80,90}

say "setup"
venv=$(scripts/setup.sh cpu,export,hf,samples,dev -e | tail -n 1)
PATH="$(cd "$venv" && pwd)/bin:$PATH"

say "lint, format, types"
scripts/check.sh

run_cpp_tests() {
  local name=$1
  shift
  cmake -S plugins -B "build/$name" -G Ninja -DMOE_EXPORT_BUILD_TESTS=ON -DMOE_EXPORT_WERROR=ON \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython3_EXECUTABLE="$(command -v python)" \
    "$@" >"build/$name.log"
  cmake --build "build/$name" >>"build/$name.log" || { cat "build/$name.log"; return 1; }
  ctest --test-dir "build/$name" --output-on-failure --parallel "$(nproc)"
}
mkdir -p build
say "C++ kernels"
run_cpp_tests tests
if [ "$mode" != --fast ]; then
  say "C++ kernels, address and undefined-behaviour sanitizers"
  run_cpp_tests asan -DMOE_EXPORT_SANITIZE=address,undefined
  say "C++ kernels, thread sanitizer"
  run_cpp_tests tsan -DMOE_EXPORT_SANITIZE=thread
fi

say "Python"
# One thread per process: the models are tiny, and spinning threads of two processes fight.
export OMP_NUM_THREADS=1
if [ "$mode" = --all ]; then
  pytest -n 2 --dist worksteal
else
  pytest -n 2 --dist worksteal -m "not slow"
fi

if [ "$mode" != --fast ]; then
  say "quickstart in a fresh virtual environment"
  fresh=$(mktemp -d)
  trap 'rm -rf "$fresh"' EXIT
  env -u VIRTUAL_ENV -u OMP_NUM_THREADS MOE_EXPORT_VENV="$fresh/venv" scripts/quickstart.sh
fi
say "done"
