"""inspectd: streaming video inspection, from cameras to verdicts, with no silent pass."""

__version__ = "0.1.0"
