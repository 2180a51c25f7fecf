#!/usr/bin/env bash
# Make the virtual environment and install the project into it: setup.sh EXTRAS [PIP_OPTION...]
# Uses the active virtual environment, else $MOE_EXPORT_VENV, else .venv. Prints its path last.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=$1
shift
venv=${VIRTUAL_ENV:-${MOE_EXPORT_VENV:-.venv}}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
python="$venv/bin/python"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "Python 3.11 or later is needed; found $("$python" --version)" >&2; exit 4; }
command -v c++ g++ clang++ >/dev/null \
  || { echo "a C++17 compiler is needed (g++ or clang++)" >&2; exit 4; }

# An installed torch is kept if it serves; else one fixed version, before anything that needs torch.
"$python" - <<'EOF' || "$python" -m pip install --quiet torch==2.13.0
import sys
from importlib import metadata
try:
    found = tuple(int(part) for part in metadata.version("torch").split("+")[0].split(".")[:2])
except metadata.PackageNotFoundError:
    found = (0, 0)
sys.exit(found < (2, 11))
EOF
"$python" -m pip install --quiet "$@" ".[$extras]" >&2
echo "$venv"
