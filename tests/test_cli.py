"""The command line: quick to answer, one line for every failure, the exit codes of the contract."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

import pytest
from tests_cli import PATIENCE_S, clean_environment, inspectd

from inspectd import cli
from inspectd.__main__ import exit_code, main
from inspectd.errors import CalibrationError, ConfigError, EndpointHeld, SourceLost, TransportError

VERBS = ("run", "demo", "check", "status", "watch", "trigger", "calibrate", "replay", "weights", "bench")
HEAVY = {"torch", "open_clip", "cv2", "av", "zmq", "numpy", "structlog", "pydantic_settings", "multiprocessing"}


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy(verb: str) -> None:
    """`--help` of every verb answers at once, because nothing heavy is imported before it is used."""
    script = (
        "import sys\nfrom inspectd.__main__ import main\n"
        f"sys.argv = ['inspectd', *{[verb] if verb else []}, '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('MODULES', *sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env=clean_environment()
    )
    text, _, modules = done.stdout.partition("MODULES")
    assert "Usage" in text
    heavy = HEAVY if verb else HEAVY | {"pydantic"}  # typer itself reads a verb's arguments with pydantic
    assert not heavy & set(modules.split())


def test_help_lists_the_verbs() -> None:
    """Every verb that exists is listed, and none that does not."""
    said = inspectd("--help")
    assert said.code == 0
    assert [verb for verb in VERBS if f" {verb} " not in said.out] == []
    assert " bridge " not in said.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["dance"], "dance"),
        (["run"], "--config"),
        (["run", "--cofig", "x"], "--cofig"),
        (["watch", "--count", "many"], "--count"),
        (["watch", "--endpoint", "example"], "--endpoint"),
        (["watch", "--camera", "Cam/1"], "--camera"),
        (["status", "--endpoint", "tcp://127.0.0.1:1", "--config", "x"], "not both"),
        (["trigger"], "CAMERA"),
        (["calibrate", "recipe.toml"], "--good"),
        (["calibrate", "r.toml", "--good", "x", "--target-false-reject-rate", "7"], "target-false-reject-rate"),
        (["replay", "a.mp4", "--recipe", "r.toml", "--out", "o", "--presence", "--every-nth", "3"], "not both"),
        (["weights", "steal"], "steal"),
    ],
)
def test_wrong_usage_exits_two(arguments: list[str], named: str) -> None:
    """Wrong usage exits 2 and names what is wrong."""
    said = inspectd(*arguments)
    assert said.code == 2
    assert named in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError, 3), (EndpointHeld, 4), (CalibrationError, 1), (TransportError, 70), (SourceLost, 70)],
)
def test_failures_have_the_exit_codes_of_the_contract(error: type, code: int) -> None:
    """Each kind of failure has its exit code."""
    assert exit_code(error("x")) == code


@pytest.mark.parametrize("error", [ConfigError("a key\nis wrong"), ValueError("nobody\nforesaw this")])
def test_every_failure_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Foreseen or not, a failure is one line on standard error and never a traceback."""

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (3, 70)
    assert capsys.readouterr().err.count("\n") == 1


def test_status_of_nothing_is_one_line() -> None:
    """Without a daemon `status` says who does not answer."""
    said = inspectd("status", "--endpoint", "ipc:///tmp/inspectd-nobody")
    assert said.code == 70
    assert "ipc:///tmp/inspectd-nobody: no answer" in said.complaint


def test_weights_that_are_not_there_say_how_to_get_them(tmp_path) -> None:
    """`weights show` names the command that fetches them and where they go."""
    said = inspectd("weights", "show", "--dir", tmp_path)
    assert said.code == 3
    assert "inspectd weights fetch" in said.complaint
    assert str(tmp_path) in said.complaint


def test_unknown_weights_name_the_known_ones(tmp_path) -> None:
    """A typo in the tag of weights is answered with the tags that exist."""
    said = inspectd("weights", "fetch", "ViT-B-16-plus-240", "laion", "--dir", tmp_path)
    assert said.code == 3
    assert "laion400m_e31" in said.complaint


def test_ctrl_c_while_starting_is_no_traceback() -> None:
    """Whenever Ctrl-C comes during the imports of `run`, the end is quiet; at the interpreter's own end it kills."""
    for delay_s in (0.15, 0.4, 0.8):
        with subprocess.Popen(
            [sys.executable, "-c", "import inspectd.__main__ as m; print(flush=True); m.main()", "run", "-c", "/none"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(),
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # from here on it is in `main`
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay_s)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE_S)
        assert b"Traceback" not in said
        assert process.returncode in (0, 3, 130, -signal.SIGINT)


def test_ctrl_c_behind_an_import_error_is_still_ctrl_c() -> None:
    """An extension module that is interrupted in its import raises an error of its own."""
    from inspectd.__main__ import interrupted

    error = ImportError("cannot import")
    error.__cause__ = KeyboardInterrupt()
    assert interrupted(error)
    assert not interrupted(ImportError("of its own"))
