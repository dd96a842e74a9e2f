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
    # Each of thousands of kills is a fork of a process that stays small, and synced: on memory.
    matrix=(tests/testing plugins/volkit-{local,loop}/tests/test_conformance.py plugins/volkit-loop/tests/test_power_cut.py)
    # A container that starts copies all mounts, and holds others' devices for a moment; a gateway takes a CPU for itself.
    alone=(adapters/docker/tests/engines plugins/volkit-s3/tests/s3 tests/integration/test_static.py)
    shm=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)" volkit.XXXXXX)
    trap 'rm -rf "$shm"' EXIT
    echo "== pytest: the crash matrix"
    .venv/bin/pytest -q --numprocesses 2 --dist worksteal --basetemp "$shm/tmp" --volkit-faults=full "${matrix[@]}" ||
        failed=1
    echo "== pytest: two at a time"
    beside=("${matrix[@]/#/--ignore=}" "${alone[@]/#/--ignore=}")
    .venv/bin/pytest -q --numprocesses 2 --dist loadfile -m "not copies_mounts" "${beside[@]}" || failed=1
    echo "== pytest: with a copy of all mounts"
    .venv/bin/pytest -q -m copies_mounts "${beside[@]}" || failed=1
    set -- "${alone[@]}"
fi
echo "== pytest"
.venv/bin/pytest "$@" || failed=1
exit $failed
