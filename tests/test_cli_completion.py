"""`volkit completion`: what bash really completes, by its functions and at a prompt; other shells are told it too."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from volkit import cli

CASES = [
    # what is typed, what is offered among others, what is not
    ("ch", {"check"}, {"doctor"}),
    ("", {"check", "doctor", "call", "deploy", "completion"}, {"controller"}),
    ("doctor --re", {"--repair"}, {"--dry-run"}),
    ("recover --", {"--dry-run", "--backend"}, {"--repair"}),
    ("doctor --backend ", {"loop", "local"}, {"table"}),
    ("journal --log-level ", {"debug", "error"}, set()),
    ("check ", {"loop", "local"}, set()),
    ("check --faults ", {"none", "sampled", "full"}, {"loop"}),
    ("check --end", {"--endpoint"}, set()),  # of an adapter
    ("explain ", {"backend", "operation"}, {"loop"}),
    ("explain operation node_st", {"node_stage"}, {"node_publish"}),
    ("explain error NotF", {"NotFound"}, set()),
    ("deploy ", {"kubernetes", "nomad", "docker", "flex", "pv"}, set()),
    ("deploy kubernetes --rep", {"--replicas"}, set()),
    ("call create-vol", {"create-volume"}, {"delete-volume"}),
    ("call create-volume --access-mode single", {"single-node-writer"}, {"multi-node-multi-writer"}),
    ("table --m", {"--markdown", "--mermaid"}, {"--json"}),
    ("completion ", {"bash", "zsh", "fish"}, set()),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is printed for each shell, as its user would keep it."""
    made = {shell: tmp_path_factory.mktemp("completion") / shell for shell in ("bash", "zsh", "fish")}
    for shell, path in made.items():
        with path.open("w") as file:
            command = [sys.executable, "-m", "volkit.cli", "completion", shell]
            subprocess.run(command, stdout=file, check=True)
    return made


@pytest.fixture(scope="module")
def completed(scripts: dict[str, Path]) -> dict[str, set[str]]:
    """What bash offers for each case: its completion function is called as bash calls it."""
    calls = "\n".join(
        shlex.join(["offer", "volkit", *typed.split(), *([] if typed and typed[-1] != " " else [""])])
        for typed, *_ in CASES
    )
    program = f"""
        source {scripts["bash"]}
        function_of_volkit=$(complete -p volkit | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        offer() {{
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            $function_of_volkit volkit "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
            echo "${{COMPREPLY[@]}}"
        }}
        {calls}
    """
    ended = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    return {typed: set(line.split()) for (typed, *_), line in zip(CASES, lines, strict=True)}


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"), CASES, ids=lambda one: one if isinstance(one, str) else ""
)
def test_bash_offers(
    completed: dict[str, set[str]], typed: str, offered: set[str], not_offered: set[str]
) -> None:
    assert offered <= completed[typed]
    assert not not_offered & completed[typed]


def test_bash_completes_at_its_prompt(scripts: dict[str, Path]) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="dumb", INPUTRC="/dev/null", PS1="ready> ")
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        os.write(terminal, f"source {scripts['bash']}; echo sour''ced\n".encode())
        shown_until(terminal, "sourced")
        os.write(terminal, b"volkit doct\t--rep\t")
        shown_until(terminal, "volkit doctor --repair ")
    finally:
        os.write(terminal, b"\x03exit\n")
        os.close(terminal)
        os.waitpid(child, 0)


def shown_until(terminal: int, text: str) -> None:
    """Read what the terminal shows until it shows `text`."""
    shown, end = "", time.monotonic() + 60
    while text not in shown:
        assert select.select([terminal], [], [], max(end - time.monotonic(), 0))[0], shown
        shown += os.read(terminal, 4096).decode()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_are_told_the_same(scripts: dict[str, Path], shell: str) -> None:
    text = scripts[shell].read_text()
    for word in (
        "doctor",
        "repair",
        "kubernetes",
        "replicas",
        "create-volume",
        "sampled",
        "node_stage",
        "loop",
    ):
        assert word in text


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["completion", "cmd.exe"])
    assert end.value.code == 2
    assert "bash" in capsys.readouterr().err


def test_no_other_command_imports_what_it_is_made_with() -> None:
    program = (
        "import sys; from volkit import cli; cli.main(['table', '--json']); sys.exit('shtab' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
