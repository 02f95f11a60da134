# Sourced by the other scripts. `setup WHAT` makes .venv and installs flashlet in it, unless that is done; WHAT is
# base, torch (with that extra) or dev (everything). The installation is editable: Python changes need nothing,
# changes of C++ or of dependencies lead to a new installation.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv_python=$root/.venv/bin/python

setup() {
    local key
    key=$(setup_key)
    if is_set_up "$1"; then
        return
    fi
    mkdir -p "$root/.cache"
    {
        flock 9  # scripts that start together install once
        is_set_up "$1" || set_up "$1" 9>&-
    } 9>"$root/.cache/setup.lock"
}

is_set_up() {
    [[ $(cat "$root/.venv/installed-$1" 2>/dev/null) == "$key" ]]
}

set_up() {
    local what=$1 target=$root included
    case $what in
        base) included=(base) ;;
        torch) included=(base torch) ;;
        dev) included=(base torch dev) ;;
        *) echo "error: expected base, torch or dev to set up, got '$what'" >&2 && exit 2 ;;
    esac
    if [[ $what != base ]]; then
        target+="[$what]"
    fi
    make_venv
    echo "Installing flashlet ($what) into .venv: this takes a few minutes the first time." >&2
    "$venv_python" -m pip install --disable-pip-version-check --editable "$target" >&2
    for what in "${included[@]}"; do
        echo "$key" >"$root/.venv/installed-$what"
    done
}

# Changes with whatever makes an installation out of date.
setup_key() {
    (cd "$root" && {
        pwd
        find kernels -type f -not -name "*.py*" -print0 | LC_ALL=C sort -z | xargs -0 cat
        cat CMakeLists.txt pyproject.toml
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
