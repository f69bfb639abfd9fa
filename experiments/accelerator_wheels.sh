#!/usr/bin/env bash
# Collects the wheels that an accelerator machine without a network lacks, so that experiments/accelerator.py runs there
# from a checkout:
#
#     experiments/accelerator_wheels.sh FOLDER [HAVE]          here
#     python -m pip install --no-index --no-deps FOLDER/*.whl  there
#
# HAVE is what `python -m pip list --format=freeze` says there; without it, what jax 0.11.2, flax, chex and numpy 2.5 bring.
# jax itself is never among the wheels. Left out is what only videos, windows and viewers need.
# EXTRAS names extras of this project (gymnax,craftax; brax too where HAVE says that pandas and matplotlib are there).
# PYTHON is an interpreter of the version that the machine has, 3.12.
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: experiments/accelerator_wheels.sh FOLDER [HAVE]" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3.12}
extras=${EXTRAS:-gymnax,craftax}
most=60000000    # bytes in all
mkdir -p "$1"
folder=$(cd "$1" && pwd)
if [ -n "$(ls -A "$folder")" ]; then
    echo "error: $folder is not empty; name a new folder" >&2
    exit 2
fi
have=
if [ $# -eq 2 ]; then have=$(realpath "$2"); fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
    echo "error: $python is no Python 3.12, as the machine has; name one: PYTHON=/path/to/python3.12" >&2
    exit 2
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet jax==0.11.2 'numpy>=2.5,<2.6' flax chex
"${pip[@]}" list --format=freeze > "$scratch/base.txt"
"${pip[@]}" install --quiet --dry-run --report "$scratch/report.json" "$root[$extras]" pytest
"$scratch/venv/bin/python" - "$scratch" "$have" > "$scratch/wanted.txt" <<'PYTHON'
import json
import re
import sys
from pathlib import Path

# What jax, a window, a video or a viewer needs.
OUT = {
    *("jax", "jaxlib", "numpy", "scipy", "ml-dtypes", "opt-einsum", "dreamer", "pip"),
    *("av", "pygame", "pygame-ce", "mujoco-studio", "pyopengl", "glfw", "tzdata"),
}


def name(text):
    return re.sub(r"[-_.]+", "-", text).lower()


scratch, have = Path(sys.argv[1]), sys.argv[2]
base = dict(line.split("==") for line in (scratch / "base.txt").read_text().split())
report = json.loads((scratch / "report.json").read_text())["install"]
found = base | {one["metadata"]["name"]: one["metadata"]["version"] for one in report}
there = Path(have).read_text().split() if have else list(base)
known = {name(line.split("==")[0]) for line in there}
for package, version in sorted(found.items()):
    if name(package) not in OUT | known:
        print(f"{package}=={version}")
PYTHON
"${pip[@]}" wheel --quiet --no-deps --wheel-dir "$folder" --requirement "$scratch/wanted.txt"
size=$(cat "$folder"/*.whl | wc -c)
echo "$(find "$folder" -name '*.whl' | wc -l) wheels, $((size / 1000000)) MB, in $folder"
if [ "$size" -gt "$most" ]; then
    echo "error: more than $((most / 1000000)) MB; name fewer EXTRAS, or what is there already as HAVE" >&2
    exit 1
fi
echo "there: python -m pip install --no-index --no-deps $folder/*.whl"
