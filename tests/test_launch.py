"""Flags, environment and configuration file: who wins, what is refused, and that no secret is shown."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

import volkit
from volkit import FailedPrecondition, InvalidArgument, NotFound, arguments, launch, logs, option


@frozen
class Settings:
    pool: Path = option(help="where volumes are")
    access_key: str = option(default="", secret=True)
    hosts: tuple[str, ...] = ()
    thin: bool = True


class Controller(volkit.Controller[Settings, Any], volkit.TakesIds):
    def create_volume(self, request: volkit.CreateVolumeRequest[Any]) -> volkit.Volume:
        raise AssertionError

    def delete_volume(self, request: volkit.DeleteVolumeRequest) -> None: ...

    def get_volume(self, request: volkit.GetVolumeRequest) -> volkit.Volume:
        raise AssertionError


class Node(volkit.Node[Settings]):
    def connect(self, request: volkit.ConnectRequest) -> volkit.Connection:
        raise AssertionError

    def disconnect(self, request: volkit.DisconnectRequest) -> None: ...


class Acme(volkit.Backend[Settings, Any]):
    name = "acme"
    settings = Settings
    controller = Controller
    node = Node


@pytest.fixture(autouse=True)
def _acme() -> Iterator[None]:
    unregister = volkit.register(Acme)
    yield
    unregister()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "volkit.toml"
    path.write_text(
        'backend = "acme"\nnode-id = "from-file"\nlog-level = "error"\nservices = ["node"]\n'
        "port = 1\nverbose = true\n"
        '[options]\npool = "/file"\nhosts = ["a", "b"]\nthin = false\n'
    )
    return path


def parser() -> arguments.Parser:
    made = arguments.Parser(prog="volkit-test")
    arguments.add_arguments(made)
    made.add_argument("--endpoint", default="default")
    made.add_argument("--port", type=int, default=0)
    made.add_argument("--verbose", action="store_true")
    return made


def parse(*argv: str, **environ: str) -> Any:
    return parser().parse(argv, environ, variables={"endpoint": "CSI_ENDPOINT"})


def settings(*argv: str, **environ: str) -> Settings:
    read = launch.read_settings(Acme, parse(*argv, **environ).option)
    assert isinstance(read, Settings)
    return read


# -- precedence ----------------------------------------------------------------------------------------------


def test_defaults() -> None:
    args = parse()
    assert (args.backend, args.endpoint, args.port, args.verbose, args.option) == (
        "",
        "default",
        0,
        False,
        [],
    )
    assert (args.services, args.log_level, args.log_format) == (("controller", "node"), "info", "text")
    assert args.node_id
    assert args.state_dir is None


def test_the_flag_then_the_environment_then_the_file(config: Path) -> None:
    file = ("--config", str(config))
    assert parse(*file).node_id == "from-file"
    assert parse(VOLKIT_CONFIG=str(config)).node_id == "from-file"
    assert parse(*file, VOLKIT_NODE_ID="from-environment").node_id == "from-environment"
    assert parse(*file, "--node-id", "from-flag", VOLKIT_NODE_ID="from-environment").node_id == "from-flag"
    assert parse("--config=", VOLKIT_CONFIG=str(config)).node_id != "from-file"


def test_every_kind_of_value_comes_from_everywhere(config: Path) -> None:
    args = parse("--config", str(config))
    assert (args.backend, args.services, args.log_level) == ("acme", ("node",), "error")
    assert (args.port, args.verbose) == (1, True)
    args = parse(VOLKIT_SERVICES=" controller ,", VOLKIT_PORT="7", VOLKIT_VERBOSE="no", VOLKIT_STATE_DIR="/s")
    assert (args.services, args.port, args.verbose, args.state_dir) == (("controller",), 7, False, Path("/s"))


def test_an_empty_variable_is_not_set(config: Path) -> None:
    args = parse("--config", str(config), VOLKIT_NODE_ID="", VOLKIT_PORT="", VOLKIT_OPTION_POOL="")
    assert (args.node_id, args.port) == ("from-file", 1)
    assert launch.read_settings(Acme, args.option).pool == Path("/file")


def test_a_second_variable_comes_after_the_first() -> None:
    assert parse(CSI_ENDPOINT="unix:///a").endpoint == "unix:///a"
    assert parse(CSI_ENDPOINT="unix:///a", VOLKIT_ENDPOINT="unix:///b").endpoint == "unix:///b"
    assert parse("--endpoint", "c", CSI_ENDPOINT="unix:///a").endpoint == "c"


def test_required_arguments_may_come_from_elsewhere() -> None:
    made = parser()
    made.add_argument("--region", required=True)
    assert made.parse([], {"VOLKIT_REGION": "eu"}).region == "eu"
    other = parser()
    other.add_argument("--region", required=True)
    with pytest.raises(SystemExit):
        other.parse([], {})


# -- options -------------------------------------------------------------------------------------------------


def test_options_follow_the_same_order_whatever_their_spelling(config: Path) -> None:
    file = ("--config", str(config))
    assert settings(*file) == Settings(pool=Path("/file"), hosts=("a", "b"), thin=False)
    assert settings(*file, VOLKIT_OPTION_POOL="/env").pool == Path("/env")
    assert settings(*file, "-o", "pool=/flag", VOLKIT_OPTION_POOL="/env").pool == Path("/flag")
    given = settings(*file, "--option", "hosts=x=1,y", VOLKIT_OPTION_ACCESS_KEY="K")
    assert (given.hosts, given.access_key) == (("x=1", "y"), "K")


def test_an_option_is_read_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("s3cret = x\n")
    for key in ("accessKey", "access_key", "access-key"):
        assert settings("-o", "pool=/p", "-o", f"{key}=@{secret}").access_key == "s3cret = x"
    assert settings("-o", "pool=/p", VOLKIT_OPTION_ACCESS_KEY=f"@{secret}").access_key == "s3cret = x"
    assert settings("-o", "pool=/p", VOLKIT_OPTION_ACCESS_KEY="@@/x").access_key == "@/x"
    secret.write_text("two\nlines\n\n")
    assert settings("-o", "pool=/p", "-o", f"accessKey=@{secret}").access_key == "two\nlines\n"


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (
            ["-o", "poool=/p"],
            "unknown option 'poool': valid are accessKey, hosts, pool, thin; did you mean 'pool'?",
        ),
        (["-o", "hosts=a"], "option 'pool' is required: where volumes are"),
        (["-o", "pool=/p", "-o", "pool=/p"], "option 'pool' is given twice by -o"),
        (
            ["-o", "pool=/p", "-o", "accessKey=hunter2"],
            "write -o accessKey=@/FILE, or set VOLKIT_OPTION_ACCESS_KEY",
        ),
        (["-o", "pool=/p", "-o", "access_key=@@/hunter2"], "is secret"),
        (["-o", "pool=p"], "option 'pool': 'p' is not an absolute path"),
        (["-o", "pool=@/does/not/exist"], "option 'pool': /does/not/exist cannot be read: No such file"),
        (["-o", "pool=@/dev"], "/dev cannot be read: Is a directory"),
        (["-o", "pool=@/dev/zero"], "/dev/zero is larger than 1048576 bytes"),
    ],
)
def test_a_wrong_option_is_refused(argv: list[str], reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        settings(*argv)
    assert reason in caught.value.message
    assert "hunter2" not in caught.value.message


def test_a_file_that_is_no_text_is_refused_unseen(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_bytes(b"hunter2\xff\xfe")
    with pytest.raises(InvalidArgument, match="is not a text file") as caught:
        settings("-o", "pool=/p", "-o", f"accessKey=@{secret}")
    assert "hunter2" not in caught.value.message


# -- wrong command lines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "environ", "sentence"),
    [
        (["--log-level", "loud"], {}, "invalid choice: 'loud'"),
        (["--services", "node,cloud"], {}, "'node,cloud' is not controller, node or controller,node"),
        (["--services", ""], {}, "'' is not controller, node"),
        (["--state-dir", ""], {}, "is empty: give a directory"),
        (["-o", "pool"], {}, "'pool' has no value: write KEY=VALUE"),
        (["-o", "=x"], {}, "has no value"),
        (["--back", "acme"], {}, "unrecognized arguments: --back"),
        (["--config"], {}, "--config: expected one argument"),
        (["--config", "/does/not/exist"], {}, "/does/not/exist cannot be read: No such file or directory"),
        ([], {"VOLKIT_LOG_FORMAT": "xml"}, "VOLKIT_LOG_FORMAT: 'xml' is not one of text, json"),
        ([], {"VOLKIT_PORT": "http"}, "VOLKIT_PORT: "),
        ([], {"VOLKIT_VERBOSE": "maybe"}, "VOLKIT_VERBOSE: 'maybe' is not true or false"),
        ([], {"VOLKIT_SERVICES": "all"}, "VOLKIT_SERVICES: 'all' is not"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_exit_code_2(
    argv: list[str], environ: dict[str, str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*argv, **environ)
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("volkit-test: ")
    assert sentence in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("backend = acme", "configuration file "),
        ('bakend = "acme"', "unknown key 'bakend' in the configuration file: valid are backend, endpoint"),
        ('option = ["pool=/p"]', "unknown key 'option'"),
        ('config = "/other"', "unknown key 'config'"),
        ('options = "pool=/p"', "is not a table: begin it with [options]"),
        ("[options.pool]\nx = 1", "'pool' in the configuration file is a table"),
        ('[backend]\nname = "acme"', "'backend' in the configuration file is a table"),
        ('log-level = "loud"', "'log-level' in the configuration file: 'loud' is not one of debug"),
        ('port = "http"', "'port' in the configuration file: "),
        ("port = [[1]]", "'port' in the configuration file is a table"),
        ("x" * 2_000_000, "is larger than"),
    ],
)
def test_a_wrong_file_is_one_sentence_and_exit_code_2(
    text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "volkit.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(path))
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert shown.count("\n") == 1
    assert len(shown) < 600


# -- the engine ----------------------------------------------------------------------------------------------


def test_an_engine_is_opened(tmp_path: Path) -> None:
    state = tmp_path / "a" / "b"
    args = parse("--backend", "acme", "-o", "pool=/p", "--state-dir", str(state), "--node-id", "n1")
    engine = launch.open_engine(args)
    try:
        assert engine.backend is Acme
        assert engine.node_id == "n1"
        assert engine.services == {"controller", "node"}
        assert engine.controller is not None
        assert engine.controller.settings == Settings(pool=Path("/p"))
        assert state.stat().st_mode & 0o777 == 0o700
        assert (state / "journal.db").is_file()
    finally:
        engine.close()


def test_a_driver_may_be_made_for_one_backend(tmp_path: Path) -> None:
    made = arguments.Parser(prog="acme-csi")
    arguments.add_arguments(made, Acme)
    with pytest.raises(SystemExit):
        made.parse(["--backend", "other"], {})
    args = made.parse(
        ["-o", "pool=/p", "--state-dir", str(tmp_path), "--journal", "memory://", "--services", "controller"],
        {},
    )
    engine = launch.open_engine(args, Acme)
    engine.close()
    assert engine.backend is Acme
    assert engine.node is None
    assert not (tmp_path / "journal.db").exists()


def test_no_engine_without_what_it_needs(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path))
    with pytest.raises(InvalidArgument, match="no backend: give --backend NAME or set VOLKIT_BACKEND"):
        launch.open_engine(parse(*state))
    with pytest.raises(NotFound, match=r"there is no backend 'acne'.*did you mean 'acme'"):
        launch.open_engine(parse(*state, "--backend", "acne"))
    with pytest.raises(InvalidArgument, match="option 'pool' is required"):
        launch.open_engine(parse(*state, "--backend", "acme"))
    with pytest.raises(InvalidArgument, match="is no kind of journal"):
        launch.open_engine(parse(*state, "--backend", "acme", "-o", "pool=/p", "--journal", "redis://x"))
    (tmp_path / "file").touch()
    with pytest.raises(
        FailedPrecondition, match=r"state directory .*/file/x cannot be made: Not a directory"
    ):
        launch.open_engine(
            parse("--backend", "acme", "-o", "pool=/p", "--state-dir", str(tmp_path / "file" / "x"))
        )


# -- the log -------------------------------------------------------------------------------------------------


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logs._hidden.clear()


@pytest.mark.usefixtures("restored")
def test_lines_for_people() -> None:
    out = io.StringIO()
    launch.configure_logging("warning", "text", out)
    log = logging.getLogger("volkit.test")
    log.info("unseen")
    log.warning("volume %r\n2026-01-31T12:00:00.000Z ERROR faked: all is lost", "v1")
    first, second = out.getvalue().splitlines()
    assert first.endswith("Z WARNING volkit.test: volume 'v1'")
    assert second.startswith("    2026-01-31T")


@pytest.mark.usefixtures("restored")
def test_json_for_machines() -> None:
    out = io.StringIO()
    launch.configure_logging("debug", "json", out)
    log = logging.getLogger("volkit.test")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("volume %s", 'a"b\nc', extra={"volume_id": "v1", "seconds": 1.5, "level": "faked"})
    [line] = out.getvalue().splitlines()
    fields = json.loads(line)
    assert fields["message"] == 'volume a"b\nc'
    assert (fields["level"], fields["logger"]) == ("error", "volkit.test")
    assert (fields["volume_id"], fields["seconds"]) == ("v1", 1.5)
    assert "ValueError: why" in fields["exception"]
    assert fields["time"].endswith("Z")


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("form", ["text", "json"])
def test_the_secrets_of_the_settings_are_in_no_line(form: str, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("hunter2\n")
    out = io.StringIO()
    launch.configure_logging("debug", form, out)
    value = settings("-o", "pool=/p", "-o", f"accessKey=@{secret}")
    log = logging.getLogger("volkit.test")
    log.info("login with %s", value.access_key, extra={"header": f"Bearer {value.access_key}"})
    try:
        raise RuntimeError(f"refused: {value.access_key}")
    except RuntimeError:
        log.exception("no")
    assert "hunter2" not in out.getvalue()
    assert out.getvalue().count("***") == (2 if form == "text" else 3)


def test_settings_are_read_before_anything_heavy_is_imported() -> None:
    """What a FlexVolume call pays for: a driver that was made for one backend needs no plugin machinery."""
    heavy = {"pluggy", "rich", "importlib.metadata", "subprocess", "sqlite3"}
    program = f"import sys, volkit.launch; print({heavy} & set(sys.modules) or 0)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "0\n"
