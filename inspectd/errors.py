"""The error tree. Every message is one line that names the file, key or field and says what is allowed.

InspectdError
├── ConfigError          a person must change something; the command line prints it and exits 3
├── SourceError          a camera or file; capture answers `error` verdicts and goes on
│   ├── SourceLost       the source is gone (end of stream, refused, unplugged); capture reconnects
│   │   └── LoginRefused it wants another user or password; capture asks again more and more slowly
│   └── SourceTimeout    the source is silent beyond its limit; capture reconnects
├── DetectorError        weights or the model; the worker exits and is replaced
│   └── OutOfMemory      the device has no room for a pass of half the frames either, or for a single frame
├── TransportError       sockets or shared memory; the stage exits and is replaced
│   └── EndpointHeld     an endpoint is held by another program; the daemon exits 4
├── JournalError         the journal cannot take a verdict; the publisher goes on `degraded`
└── CalibrationError     too few or contradictory samples; the command line prints it and exits 1
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line, the daemon and its children (contract §6)."""

    DONE = 0
    FOUND_WRONG = 1
    USAGE = 2
    CONFIG = 3
    ENDPOINT_HELD = 4
    FAILED = 70
    INTERRUPTED = 130


class InspectdError(Exception):
    """Anything inspectd raises on purpose. The command line prints it as one line, never as a traceback."""


class ConfigError(InspectdError):
    """Settings, a recipe or weights are wrong. Caught by the command line (exit 3); never retried."""


class SourceError(InspectdError):
    """A frame source failed. Caught by capture, which answers what was accepted and opens the source again."""


class SourceLost(SourceError):  # noqa: N818 - the contract's own word
    """The source has gone away."""


class LoginRefused(SourceLost):
    """The camera refuses the user or the password. Many lock the account of one who tries too often."""


class SourceTimeout(SourceError):  # noqa: N818 - reads as what it is
    """The source gave no frame within its time limit."""


class DetectorError(InspectdError):
    """The model cannot be loaded or cannot run. Caught at the top of the worker, which exits."""


class OutOfMemory(DetectorError):  # noqa: N818 - reads as what it is
    """The device has no memory for the model's work. Caught at the top of the worker, which exits: a new one has it."""


class TransportError(InspectdError):
    """A socket or a shared-memory segment cannot be made or is not what was expected."""


class EndpointHeld(TransportError):  # noqa: N818 - reads as what it is
    """An endpoint is in use by another program. Caught by the supervisor, which exits 4."""


class JournalError(InspectdError):
    """The journal cannot be opened or written. Caught by the publisher, which goes on `degraded`."""


class CalibrationError(InspectdError):
    """The samples given cannot yield a threshold. Caught by the command line (exit 1)."""
