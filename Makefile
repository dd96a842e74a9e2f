# Each target is a line or two; what needs more is under ci/.
.PHONY: venv system demo test faults soak bench docs lint lock dist

venv:     ; @ci/venv.sh
system: venv ; @ci/system.sh
demo: venv ; @.venv/bin/volkit demo
test: system ; @ci/test.sh
faults: system ; @.venv/bin/pytest -q --volkit-faults=full tests/testing plugins/volkit-loop/tests/test_conformance.py
soak: system ; @SOAK_SECONDS=$${SOAK_SECONDS:-600} .venv/bin/pytest -q tests/integration/test_soak.py
bench: system ; @ci/bench.sh
docs: venv ; @NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
lint: venv ; @ci/lint.sh
lock: venv ; @ci/lock.sh
dist: venv ; @ci/build.sh dist && ci/install_alone.sh dist
