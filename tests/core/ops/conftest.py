"""Fixtures of the operations' tests."""

import pytest


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> int:
    """Slices of the batch so small that small tensors are computed in several."""
    monkeypatch.setattr("qcore.ops.batches._SLICE", 4096)
    return 4096
