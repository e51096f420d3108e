"""The cache of embeddings: warm, damaged, and where nothing can be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog
import torch
from structlog.testing import capture_logs

from inspectd.detect.cache import EmbeddingCache

KEY = "ab" * 32


@pytest.fixture(autouse=True)
def fresh_log():
    structlog.reset_defaults()


def compute(calls: list[int]):
    """Counts its calls."""

    def run() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"text": torch.arange(6.0).view(2, 3)}

    return run


def test_second_look_computes_nothing(tmp_path: Path):
    """What was stored is found again by another process's cache."""
    calls: list[int] = []
    first = EmbeddingCache(tmp_path / "new").get(KEY, compute(calls))
    second = EmbeddingCache(tmp_path / "new").get(KEY, compute(calls))
    assert len(calls) == 1
    assert torch.equal(first["text"], second["text"])
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".embeddings"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_damaged_file_is_discarded_and_rebuilt(tmp_path: Path, damage: str):
    """A flipped bit, a short file or another file's bytes are noticed, and the file is made anew."""
    calls: list[int] = []
    EmbeddingCache(tmp_path).get(KEY, compute(calls))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": content[:50], "empty": b"", "foreign": b"x" * 500}[damage])
    with capture_logs() as logs:
        found = EmbeddingCache(tmp_path).get(KEY, compute(calls))
    assert [entry["event"] for entry in logs] == ["embedding_cache_discarded"]
    assert torch.equal(found["text"], torch.arange(6.0).view(2, 3))
    EmbeddingCache(tmp_path).get(KEY, compute(calls))
    assert len(calls) == 2


def test_folder_that_cannot_be_written_only_costs_time(tmp_path: Path):
    """Where a file stands in the folder's place nothing is cached, and a log line says so."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    calls: list[int] = []
    with capture_logs() as logs:
        EmbeddingCache(blocked / "cache").get(KEY, compute(calls))
    assert "embedding_cache_unwritable" in [entry["event"] for entry in logs]
    assert len(calls) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_only_costs_time(tmp_path: Path):
    """Without the right to write nothing is cached, and a log line says so."""
    tmp_path.chmod(0o500)
    with capture_logs() as logs:
        EmbeddingCache(tmp_path).get(KEY, compute([]))
    assert [entry["event"] for entry in logs] == ["embedding_cache_unwritable"]


def test_no_folder_keeps_nothing():
    """Without a folder every look computes."""
    calls: list[int] = []
    for _ in range(2):
        EmbeddingCache(None).get(KEY, compute(calls))
    assert len(calls) == 2
