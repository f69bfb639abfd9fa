"""Several hosts as threads of one test, without devices."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dreamer.distributed import hosts


def together(
    monkeypatch: pytest.MonkeyPatch, count: int, work: Callable[[int], Any], seconds: float = 30
) -> list[Any]:
    """Runs `work` of every host's number at once; gives what they return, or raises what the first
    of them raised, after all have ended."""
    local = threading.local()
    texts = [""] * count
    barrier = threading.Barrier(count, timeout=seconds)

    def exchange(text: str) -> list[str]:
        texts[local.number] = text
        barrier.wait()
        found = list(texts)
        barrier.wait()
        return found

    def run(number: int) -> Any:
        local.number = number
        try:
            return work(number)
        except BaseException:
            barrier.abort()
            raise

    monkeypatch.setattr(hosts, "index", lambda: local.number)
    monkeypatch.setattr(hosts, "count", lambda: count)
    monkeypatch.setattr(hosts, "exchange", exchange)
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, number) for number in range(count)]
        errors = [future.exception() for future in futures]
    ours = [e for e in errors if e and not isinstance(e, threading.BrokenBarrierError)]
    for error in ours or [e for e in errors if e]:
        raise error
    return [future.result() for future in futures]
