"""Where the result will run: a runtime, a batch size, a number of threads. Recorded with every latency."""

import os
from dataclasses import dataclass
from typing import Literal, get_args

from paredown.core.errors import TargetError

Runtime = Literal["onnxruntime", "openvino"]


@dataclass(frozen=True)
class Target:
    """runtime: "onnxruntime" or "openvino". batch: samples per call when latency is measured. threads: of the runtime.

    One thread unless more are asked for: with two, waking threads takes a small net's layers as long as their work, and
    on shared cores it changes from minute to minute.
    """

    runtime: Runtime = "onnxruntime"
    batch: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if self.runtime not in get_args(Runtime):
            known = ", ".join(get_args(Runtime))
            raise TargetError(f"runtime must be one of {known}", got=repr(self.runtime), remedy='the default is "onnxruntime"')
        for name in ("batch", "threads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise TargetError(f"{name} must be a whole number of at least 1", got=value, remedy=f"write {name}=1")

    @classmethod
    def of(cls, value: "Target | str") -> "Target":
        """A Target to use on this machine; a runtime's name alone gives that runtime with the defaults.

        Raises TargetError where this machine has fewer cores than its threads. (A Target in a report may be of another machine.)
        """
        target = value if isinstance(value, Target) else cls(value)  # type: ignore[arg-type]  # checked in __post_init__
        cores = os.cpu_count() or 1
        if target.threads > cores:
            raise TargetError(
                f"threads must be at most the {cores} cores of this machine",
                got=target.threads,
                remedy=f"write threads={cores}",
            )
        return target

    def __str__(self) -> str:
        return f"{self.runtime}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"
