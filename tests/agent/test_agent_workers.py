"""Threads that are there while there is work."""

from __future__ import annotations

import threading

import pytest

from handclasp.agent.workers import Workers
from support.waiting import eventually


def threads() -> int:
    return sum(thread.name == "worker-test" for thread in threading.enumerate())


def test_all_is_done_by_few_threads_which_end() -> None:
    done: list[int] = []
    most: list[int] = []
    gate = threading.Event()
    workers = Workers(3, "worker-test", lambda: most.append(threads()))

    def work(number: int) -> None:
        gate.wait(10)
        if number == 7:
            raise ValueError("a fault of ours")
        done.append(number)

    for number in range(50):
        workers.submit(lambda number=number: work(number))  # type: ignore[misc]
    assert threads() == 3
    gate.set()
    workers.close()
    assert sorted(done) == [number for number in range(50) if number != 7]
    assert len(most) == 50
    eventually(lambda: threads() == 0)
    workers.submit(lambda: done.append(99))
    workers.close()
    assert done[-1] == 99


def test_without_a_thread_to_be_had_work_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    workers = Workers(2, "worker-test", lambda: None)

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        workers.submit(lambda: done.append(1))
    workers.submit(lambda: done.append(2))
    workers.close()
    assert done == [1, 2]
