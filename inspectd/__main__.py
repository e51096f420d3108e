"""`inspectd` and `python -m inspectd`: the command line, with every failure as one line and an exit code."""

from __future__ import annotations

import signal
import sys
import traceback
from types import FrameType

from inspectd.errors import CalibrationError, ConfigError, EndpointHeld, ExitCode, InspectdError
from inspectd.stderr import guard_stderr


def main() -> None:
    """Runs the command line; never returns and never shows a traceback."""
    guard_stderr()
    pressed: list[int] = []

    def press(signum: int, frame: FrameType | None) -> None:
        pressed.append(signum)
        signal.default_int_handler(signum, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, press)
    try:
        from inspectd.cli import app  # noqa: PLC0415 - child processes import this module and need no verbs

        app(prog_name="inspectd")
    except InspectdError as error:
        _say(str(error))
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the top of the process: one line, as for every failure
        if pressed or interrupted(error):
            sys.exit(ExitCode.INTERRUPTED)
        _say(_bug(error))
        sys.exit(ExitCode.FAILED)


def exit_code(error: InspectdError) -> ExitCode:
    """The exit code of contract §6 for a failure."""
    match error:
        case ConfigError():
            return ExitCode.CONFIG
        case EndpointHeld():
            return ExitCode.ENDPOINT_HELD
        case CalibrationError():
            return ExitCode.FOUND_WRONG
        case _:
            return ExitCode.FAILED


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: extension modules that are interrupted in their import raise another one."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(line: str) -> None:
    sys.stderr.write(f"inspectd: {' '.join(line.split())}\n")


def _bug(error: Exception) -> str:
    """A failure that nobody foresaw, with the place where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{place}: {error}; please report this"


if __name__ == "__main__":
    main()
