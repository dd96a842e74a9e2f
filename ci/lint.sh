#!/usr/bin/env bash
# Style, types (by two checkers that must agree) and import directions. Each step runs even when one before it failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.venv/bin:$PATH
export PYRIGHT_PYTHON_GLOBAL_NODE=0 PYRIGHT_PYTHON_IGNORE_WARNINGS=1 # the Node that .venv brings, at its locked version

failed=()
step() { # NAME COMMAND...
    echo "== $1"
    "${@:2}" || failed+=("$1")
}
step "ruff check" ruff check --quiet .
step "ruff format" ruff format --quiet --check .
# One run for each directory of tests: they hold modules of the same names (conftest).
for tree in "src $(echo adapters/*/src plugins/*/src)" conftest.py ci tests benchmarks examples adapters/*/tests plugins/*/tests; do
    # shellcheck disable=SC2086 # the first tree is several
    if [ -n "$(find $tree -name '*.py' -print -quit 2>/dev/null)" ]; then
        step "mypy $tree" mypy --no-error-summary $tree
    fi
done
step "wire modules are current" python ci/proto.py --check
step "pyright" pyright --warnings
step "import-linter" lint-imports --no-logo
[ ${#failed[@]} = 0 ] || { printf 'failed: %s\n' "${failed[@]}" >&2; exit 1; }
