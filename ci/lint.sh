#!/usr/bin/env bash
# Style, types (by two checkers that must agree) and import directions. Each step runs even when one before it failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.venv/bin:$PATH
export PYRIGHT_PYTHON_GLOBAL_NODE=0 PYRIGHT_PYTHON_IGNORE_WARNINGS=1 # the Node that .venv brings, at its locked version

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
step() { # NAME COMMAND...
    echo "== $1"
    "${@:2}" || echo "$1" >> "$work/failed"
}

mypy_all() {
    # One run for each directory of tests: they hold modules of the same names (conftest).
    for tree in "src $(echo adapters/*/src plugins/*/src)" conftest.py ci tests benchmarks examples adapters/*/tests plugins/*/tests; do
        # shellcheck disable=SC2086 # the first tree is several
        if [ -n "$(find $tree -name '*.py' -print -quit 2>/dev/null)" ]; then
            step "mypy $tree" mypy --no-error-summary $tree
        fi
    done
}

mypy_all > "$work/mypy" 2>&1 & # beside the others; its runs share a cache
step "ruff check" ruff check --quiet .
step "ruff format" ruff format --quiet --check .
step "wire modules are current" python ci/proto.py --check
step "pyright" pyright --warnings
step "import-linter" lint-imports --no-logo
wait
cat "$work/mypy"
[ ! -e "$work/failed" ] || { sed 's/^/failed: /' "$work/failed" >&2; exit 1; }
