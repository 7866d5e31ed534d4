#!/usr/bin/env bash
# Make .venv at the root of the repository and install what the program needs.
#
#   bash scripts/setup.sh          the core dependencies (requirements.txt)
#   bash scripts/setup.sh test     the same and the tools of the test suite
#
# Uses uv where it is present. PYTHON=/path/to/python chooses the interpreter (3.10 or later).
# A second call finds everything in place and does nothing.
set -euo pipefail
unset CDPATH

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
extra=${1:-core}

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

have_uv() { command -v uv >/dev/null 2>&1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

can_make_venv() { have_uv || "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# Print the interpreter to build on: the user's python3 if it will do, else the newest there is.
find_python() {
    local candidate without_venv=""
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON is no working Python 3.10 or later"
        can_make_venv "$PYTHON" || fail "PYTHON=$PYTHON has no venv module; install it, or uv"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        new_enough "$candidate" || continue
        if can_make_venv "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
        without_venv=${without_venv:-$candidate}
    done
    if [ -n "$without_venv" ]; then
        fail "$without_venv has no venv module; install it (Debian, Ubuntu:" \
            "apt install $without_venv-venv) or install uv, then run this again"
    fi
    have_uv || fail "no Python 3.10 or later found; install one (python.org) or set" \
        "PYTHON=/path/to/python, then run this again"
    printf '>=3.10\n' # uv fetches one
}

venv_works() {
    new_enough "$python" && { have_uv || "$python" -m pip --version >/dev/null 2>&1; }
}

make_venv() {
    local base
    base=$(find_python)
    [ ! -e "$venv" ] || say "$venv is broken or its Python too old; making it anew"
    rm -rf -- "$venv"
    say "making $venv with $base"
    if have_uv; then
        uv venv --quiet --seed --python "$base" "$venv"
    else
        "$base" -m venv "$venv"
    fi || fail "cannot make $venv; see the lines above"
}

install() {
    if have_uv; then
        uv pip install --python "$python" "$@"
    else
        "$python" -m pip install --disable-pip-version-check "$@"
    fi || fail "the installation did not finish (network? disk space?); run this again to go on"
}

# What the state of .venv depends on: the two lists, the interpreter, and where the folder lies.
fingerprint() {
    "$python" - "$root" <<'PYTHON'
import hashlib, pathlib, sys

root = pathlib.Path(sys.argv[1])
parts = [sys.version, str(root)]
parts += [(root / name).read_text() for name in ("requirements.txt", "pyproject.toml")]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PYTHON
}

installed() { [ -f "$venv/.installed-$1" ] && [ "$(cat "$venv/.installed-$1")" = "$wanted" ]; }

case $extra in
core | test) ;;
*) fail "unknown argument '$extra'; give nothing or 'test'" ;;
esac
venv_works || make_venv
wanted=$(fingerprint)
if installed "$extra" || installed test; then
    say "$venv is up to date"
    exit 0
fi

cd -- "$root"
if [ "$extra" = test ]; then
    say "installing requirements.txt and the test tools into $venv"
    install --editable '.[test]'
else
    say "installing requirements.txt into $venv (PyTorch is large: some minutes, several GB)"
    install -r requirements.txt
fi
# A torch and a torchvision that do not belong together fail right here, not in the middle of a run.
"$python" -c 'import torch, torchvision; print(f"setup: torch {torch.__version__}, torchvision {torchvision.__version__}")' ||
    fail "torch and torchvision cannot be used together; remove $venv and run this again"
printf '%s\n' "$wanted" >"$venv/.installed-$extra"
say "done"
