#!/usr/bin/env bash
# Makes or refreshes .venv: every distribution of the workspace, editable, and the development tools, at the locked versions.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.installed
inputs=(pyproject.toml adapters/*/pyproject.toml plugins/*/pyproject.toml constraints/dev.txt ci/venv.sh)
want=$(cat "${inputs[@]}" | cksum)
# Compiled once: with PYTHONDONTWRITEBYTECODE set, each start of a driver would compile all that it imports again.
compile_sources() { .venv/bin/python -m compileall -q src adapters/*/src plugins/*/src; }
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && { compile_sources; exit 0; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "volkit needs Python 3.11 or newer; $python is $("$python" -V 2>&1). Set PYTHON=/path/to/python3.11." >&2
    exit 1
}
if ! [ -x .venv/bin/uv ]; then
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        echo "$python cannot make virtual environments: install python3-venv (apt-get install python3-venv)." >&2
        exit 1
    fi
    "$python" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints/dev.txt uv
fi

editable=()
for project in . adapters/* plugins/*; do
    [ -f "$project/pyproject.toml" ] && editable+=(--editable "$project")
done
# Hard links from the cache fail across file systems with a warning; copies never do.
UV_LINK_MODE=${UV_LINK_MODE:-copy} .venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python \
    --constraint constraints/dev.txt --group dev "${editable[@]}"
compile_sources
echo "$want" > "$stamp"
