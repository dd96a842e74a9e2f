#!/usr/bin/env bash
# Everything that must hold before a change lands. pytest comes last, so that its closing line is the last that is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

ci/lint.sh
echo "== docs"
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
echo "== each distribution alone"
ci/install_alone.sh
if [ "$(id -u)" = 0 ]; then
    echo "== up from the last release, or to what stands for the next, and back"
    ci/upgrade.sh "$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)"
fi
failed=0
if [ $# = 0 ]; then
    # In processes of their own, which stay small, and on memory: each of thousands of kills is a fork of one, and synced.
    echo "== pytest: the crash matrix"
    matrix=(tests/testing plugins/volkit-{local,loop}/tests/test_conformance.py plugins/volkit-loop/tests/test_power_cut.py)
    shm=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)" volkit.XXXXXX)
    trap 'rm -rf "$shm"' EXIT
    .venv/bin/pytest -q --numprocesses 2 --dist worksteal --basetemp "$shm/tmp" --volkit-faults=full "${matrix[@]}" ||
        failed=1
    set -- "${matrix[@]/#/--ignore=}"
fi
echo "== pytest"
.venv/bin/pytest "$@" || failed=1
exit $failed
