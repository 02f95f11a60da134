# Sourced by the other scripts. `setup EXTRA` makes .venv and installs flashlet with that extra, unless that is done.
# The installation is editable: Python changes need nothing, C++ or dependency changes lead to a new installation.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv_python=$root/.venv/bin/python

setup() {
    local extra=$1 key
    key=$(setup_key)
    if [[ $(cat "$root/.venv/installed-$extra" 2>/dev/null) == "$key" ]]; then
        return
    fi
    make_venv
    echo "Installing flashlet[$extra] into .venv: a few minutes the first time." >&2
    "$venv_python" -m pip install --disable-pip-version-check --editable "$root[$extra]" >&2
    echo "$key" >"$root/.venv/installed-$extra"
    if [[ $extra == dev ]]; then
        echo "$key" >"$root/.venv/installed-torch"  # dev contains torch
    fi
}

setup_key() {
    (cd "$root" && {
        pwd
        find CMakeLists.txt kernels -type f -not -name "*.py*" -print0 | LC_ALL=C sort -z | xargs -0 cat
        cat pyproject.toml
    } | cksum)
}

make_venv() {
    local python=${FLASHLET_PYTHON:-python3}
    if "$venv_python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "error: flashlet needs Python 3.10 or newer, but '$python' is $("$python" --version 2>&1 || true)." \
            "Set FLASHLET_PYTHON to a newer one." >&2
        exit 1
    fi
    if ! "$python" -m venv --clear "$root/.venv" >&2; then
        echo "error: '$python -m venv' failed; on Debian and Ubuntu it needs the package python3-venv." >&2
        exit 1
    fi
}
