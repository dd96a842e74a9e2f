#!/usr/bin/env bash
# Everything that must hold before a change lands. pytest comes last, so that its closing line is the last that is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

ci/lint.sh
echo "== docs"
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
echo "== each distribution alone"
ci/install_alone.sh
echo "== pytest"
exec .venv/bin/pytest --volkit-faults=full "$@"
