#!/usr/bin/env bash
# Check the code: bash scripts/test.sh [arguments of pytest]
#
# Makes .venv with the test tools where that is still to do, then runs ruff, mypy and the tests.
# bash scripts/test.sh tests/data/test_noise.py -k coupled     runs a part of them
set -euo pipefail
unset CDPATH

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
bash "$root/scripts/setup.sh" test
cd -- "$root"

python=.venv/bin/python
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the tests run side by side, one core each
unset PYTHONDONTWRITEBYTECODE                # else every process compiles all tests anew

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
