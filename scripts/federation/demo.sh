#!/usr/bin/env bash
# Three hospitals on this machine, with TLS and keys: bash scripts/federation/demo.sh [FOLDER]
#
# Makes certificates and keys, starts SuperLink, nginx and three SuperNodes, trains FedNML on three
# differently annotated folders for 5 rounds, kills one SuperNode and starts it again, prints the
# table and what has left each site, and ends all. Needs Linux, nginx and Python 3.11 or later;
# installs Flower into .venv-flower where it is missing (some minutes, several GB).
#
#   FOLDER                        is made, and kept (default: a new one below /tmp)
#   PYTHON=/path/to/python        a Python that has Flower and this project's packages
set -euo pipefail
unset CDPATH

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
folder=${1:-$(mktemp -d)/demo}

fail() {
    printf 'demo.sh: %s\n' "$*" >&2
    exit 2
}

has_flower() { "$1" -c 'import cryptography, flwr, torch' >/dev/null 2>&1; }

install_flower() {
    local python
    for python in python3.13 python3.12 python3.11 python3; do
        "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done || fail "no Python 3.11 or later found; install one, or set PYTHON=/path/to/python"
    printf 'demo.sh: installing Flower into %s (some minutes)\n' "$root/.venv-flower"
    "$python" -m venv "$root/.venv-flower"
    "$root/.venv-flower/bin/pip" install --disable-pip-version-check --quiet "$root[flower]" ||
        fail "the installation did not finish (network? disk space?); run this again"
}

if [ -n "${PYTHON:-}" ]; then
    has_flower "$PYTHON" || fail "PYTHON=$PYTHON lacks Flower; install '.[flower]' there"
else
    PYTHON=$root/.venv-flower/bin/python
    has_flower "$PYTHON" || install_flower
fi
exec "$PYTHON" "$root/scripts/federation_code/demo.py" "$folder"
