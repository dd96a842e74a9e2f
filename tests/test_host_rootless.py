"""Root in a user namespace of one's own, in children that are really nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.copies_mounts]

NOBODY = 65534


def run(script: str, *before: str) -> subprocess.CompletedProcess[str]:
    command = [
        *before,
        sys.executable,
        "-c",
        f"from volkit.host import mounts, rootless\nimport os\n{script}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_nobody_becomes_root_and_mounts_what_only_he_sees() -> None:
    place = Path(tempfile.mkdtemp(prefix="volkit-test-"))  # where nobody can go, unlike pytest's directories
    os.chown(place, NOBODY, NOBODY)
    try:
        done = run(f"""
import ctypes, encodings.ascii  # while they can be read
os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, as after an exec: or /proc/self is still root's
rootless.become_root()
assert os.geteuid() == os.getegid() == 0
os.mkdir("{place}/from"); os.mkdir("{place}/to")
mounts.bind("{place}/from", "{place}/to", options=["noexec"])
open("{place}/to/file", "w").close()
print([one.mount_point for one in mounts.mounts(under="{place}")], os.stat("{place}/to/file").st_uid)
try:
    os.chown("{place}/to/file", 1000, 1000)
except OSError as error:
    print(error.errno)
""")
        assert done.stdout.splitlines() == [f"['{place}/to'] 0", "22"], done.stderr
        assert (place / "from" / "file").stat().st_uid == NOBODY
        assert not os.path.ismount(place / "to")
        assert list((place / "to").iterdir()) == []
    finally:
        subprocess.run(["rm", "-rf", place], check=True)


def test_a_process_of_several_threads_cannot() -> None:
    done = run("""
import threading
over = threading.Event()
threading.Thread(target=over.wait).start()
try:
    rootless.become_root()
finally:
    over.set()
""")
    assert "FailedPrecondition" in done.stderr
    assert "several threads" in done.stderr


@pytest.mark.needs("unshare")
def test_where_they_are_off_the_switch_is_said() -> None:
    off = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    done = run("rootless.become_root()", "unshare", "--user", "--map-root-user", "sh", "-c", off, "sh")
    assert "no user namespace can be made" in done.stderr
    assert "sysctl user.max_user_namespaces=10000" in done.stderr
