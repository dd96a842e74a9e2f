#!/usr/bin/env bash
# Everything that must hold before a change lands. pytest comes last, so that its closing line is the last that is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

ci/lint.sh
echo "== docs"
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
echo "== each distribution alone"
ci/install_alone.sh
if [ $# = 0 ]; then
    # In a process of its own, which stays small: each of thousands of kills is a fork of it.
    echo "== pytest: the crash matrix"
    .venv/bin/pytest -q --volkit-faults=full tests/testing plugins
    set -- --ignore tests/testing --ignore plugins
fi
echo "== pytest"
exec .venv/bin/pytest "$@"
