import time
from collections.abc import Callable

import pytest


class Machine:
    """A clock that only moves when a callable of ours says so."""

    def __init__(self) -> None:
        self.now, self.calls, self.slowness = 0, [], 1.0

    def callable(self, name: str, nanoseconds: int) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += round(nanoseconds * self.slowness)

        return run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    fake = Machine()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: fake.now)
    return fake
