# Sourced by the tools: makes the virtual environment of this clone. Sets ROOT and VENV.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$ROOT/.venv}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Python 3.10 or newer is needed and was not found; set PYTHON to one." >&2
    return 1
}

# install NAME REQUIREMENT...: installs once for each state of pyproject.toml and of what is compiled.
install() {
    local name=$1 stamp python
    shift
    stamp="$VENV/.installed-$name-$(cat "$ROOT/pyproject.toml" "$ROOT/cas_checkpoint/_kernels.c" | cksum | cut -d ' ' -f 1)"
    if [ -e "$stamp" ]; then return; fi
    if [ ! -x "$VENV/bin/python" ]; then
        python=$(find_python)
        echo "Making a virtual environment with $("$python" --version) ..." >&2
        "$python" -m venv "$VENV"
    fi
    echo "Installing $name ..." >&2
    (cd "$ROOT" && "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@") || return 1
    touch "$stamp"
}
