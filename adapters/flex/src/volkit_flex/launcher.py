"""The executable that kubelet calls: a POSIX shell script, which any host can run whatever Python it has.

It answers `init` by itself. Everything else is handed on: to an interpreter started for the call (direct), or to a
daemon that runs already (daemon). Tested with dash and busybox.

How a script talks to the daemon. No program that every host has speaks to a Unix socket (curl and socat are often
there, `nc -U` and Perl's Socket sometimes), and to start one of those takes longer than the call. FIFOs need the
shell's own redirections and mkfifo(1):

    DIR/daemon    "PID START": who serves, and since when (field 22 of /proc/PID/stat); gone or another: nobody
    DIR/calls     the daemon's FIFO; a caller writes one line, the name of its own FIFO: shorter than PIPE_BUF, so whole
    DIR/NAME      the caller's FIFO, named by its process and since when it runs: first it writes its words, each ended
                  by NUL, then it reads the answer, one line

The directory is root's alone (0700), so what a FIFO carries nobody else sees, and it is never on a disk. A daemon that
dies closes its end, and the caller reads the end of the file; one that starts answers whoever was left waiting. A
caller that dies leaves a FIFO, which the daemon takes away. Both have to be in one pid namespace.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

MARK: Final = "# volkit-flex"
"""By this line a file is known to be a launcher, and not somebody else's driver."""

_SETTINGS: Final = "# settings: "

_HEAD = """\
#!/bin/sh
{mark} {version} {mode} {name}
{settings}
exec 2>/dev/null
fail() {{
    printf '{{"status":"Failure","message":"%s"}}\\n' "$1"
    exit 1
}}
[ "$#" = 1 ] && [ "$1" = init ] && {{
    printf '%s\\n' {init}
    exit 0
}}
"""

_DIRECT = """\
[ -x {python} ] || fail {missing}
trap 'exit 1' USR1  # it has answered, and a call that hangs goes on in it
trap 'kill -TERM "$call"' TERM INT HUP
{python} -I -S -c {boot} {config} "$$" "$@" </dev/null &
call=$!
wait "$call"
code=$?
while kill -0 "$call"; do
    wait "$call"
    code=$?
done
[ "$code" -le 1 ] || fail "the driver ended with status $code before it answered: see its log"
exit "$code"
"""

_BOOT = """\
import os, sys
try:
    sys.path += {path}
    from volkit_flex import kept
    kept.use({modules!r})
    from volkit_flex.direct import main
except BaseException as error:
    os.write(1, ('{{"status":"Failure","message":"the driver cannot start (%s): install it again"}}\\n'
        % type(error).__name__).encode())
    os._exit(1)
main(sys.argv[1], sys.argv[2], sys.argv[3:])
"""

_DAEMON = """\
dir={directory}
away="the driver's daemon is not running (volkit-flex serve): start it; nothing was done"
trap 'fail "the call was stopped: repeat it"' TERM INT HUP
IFS=' ' read -r pid start <"$dir/daemon" || fail "$away"
IFS= read -r line <"/proc/$pid/stat" || fail "$away"
IFS= read -r mine <"/proc/$$/stat" || fail "$away"
set -- {form} "$@"
IFS=' '
since() {{
    shift 19
    printf '%s' "$1"
}}
[ "$(since ${{line##*) }})" = "$start" ] || fail "$away"
umask 077
name=$$.$(since ${{mine##*) }})
call=$dir/$name
mkfifo "$call" || fail "no FIFO can be made in the driver's directory: is its disk full?"
printf '%s\\n' "$name" 1<>"$dir/calls"
printf '%s\\0' "$@" >"$call"
IFS= read -r answer <"$call" || fail "the driver's daemon ended before it answered: repeat the call"
printf '%s\\n' "$answer"
case $answer in
'{{"status":"Success"'*) exit 0 ;;
esac
exit 1
"""


def direct(
    *,
    name: str,
    version: str,
    init: Mapping[str, Any],
    settings: Mapping[str, Any],
    python: str,
    path: Sequence[str],
) -> str:
    """A launcher that starts `python` for each call, with `path` as its module path."""
    boot = _BOOT.format(path=list(path), modules=f"{settings['state_dir']}/flex.modules")
    missing = f"{python} is not there any more: install the driver again"
    return _head("direct", name, version, init, settings) + _DIRECT.format(
        python=shlex.quote(python),
        missing=shlex.quote(missing),
        boot=shlex.quote(boot),
        config=shlex.quote(_json(settings)),
    )


def daemon(
    *, name: str, version: str, init: Mapping[str, Any], settings: Mapping[str, Any], directory: str
) -> str:
    """A launcher that hands calls to the daemon at `directory`."""
    form = "attach" if settings["attaches"] else "mount"
    return _head("daemon", name, version, init, settings) + _DAEMON.format(
        directory=shlex.quote(directory), form=form
    )


def settings_of(text: str) -> dict[str, Any] | None:
    """The settings that a launcher was made with; None for a file that is no launcher."""
    if MARK not in text:
        return None
    line = next((one for one in text.splitlines() if one.startswith(_SETTINGS)), "")
    try:
        found = json.loads(line.removeprefix(_SETTINGS))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _head(mode: str, name: str, version: str, init: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    return _HEAD.format(
        mark=MARK,
        version=version,
        mode=mode,
        name=name,
        settings=_SETTINGS + _json(settings),
        init=shlex.quote(_json(init)),
    )


def _json(value: Mapping[str, Any]) -> str:
    """ASCII, on one line."""
    return json.dumps(value, separators=(",", ":"))
