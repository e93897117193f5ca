"""Time limits of many requests, kept by one thread."""

from __future__ import annotations

import threading

import pytest

from ftkit.serving.endpoint import deadlines


def test_only_what_takes_too_long_is_called_and_a_later_limit_is_kept_too():
    limits, late, called = deadlines.Deadlines(), threading.Event(), []
    with limits.within(600, lambda: called.append("in time")):
        pass
    with limits.within(600, lambda: called.append("still running")), limits.within(0.01, late.set):
        assert late.wait(60)
    late.clear()
    with limits.within(0.01, late.set):
        assert late.wait(60)
    assert not called


def test_a_hundred_limits_take_one_thread(monkeypatch: pytest.MonkeyPatch):
    """Guard: ``_thread is None`` in Deadlines._watch."""
    monkeypatch.setattr(deadlines, "LOOK_S", 0.001)
    limits, before = deadlines.Deadlines(), threading.active_count()
    for _ in range(100):
        late = threading.Event()
        with limits.within(0, late.set):
            assert late.wait(60)
    assert threading.active_count() <= before + 1
