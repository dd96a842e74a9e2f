#!/usr/bin/env bash
# Runs each program in benchmarks/ (the modules that they share are none), in the order of their names.
set -euo pipefail
cd "$(dirname "$0")/.."

for program in $(grep -l '__name__ == "__main__"' benchmarks/*.py); do
    echo "== $program"
    .venv/bin/python "$program"
done
