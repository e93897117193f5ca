"""Time limits of many requests, kept by one thread."""

from __future__ import annotations

import threading

from ftkit.serving.endpoint.deadlines import Deadlines


def test_only_what_takes_too_long_is_called_and_a_later_limit_is_kept_too():
    deadlines, late, called = Deadlines(), threading.Event(), []
    with deadlines.within(600, lambda: called.append("in time")):
        pass
    with deadlines.within(600, lambda: called.append("still running")), deadlines.within(0.01, late.set):
        assert late.wait(60)
    late.clear()
    with deadlines.within(0.01, late.set):
        assert late.wait(60)
    assert not called


def test_a_hundred_limits_take_one_thread():
    deadlines, before = Deadlines(), threading.active_count()
    for _ in range(100):
        with deadlines.within(600, lambda: None):
            pass
    assert threading.active_count() <= before + 1
