"""Where jobs run: here, or in other processes. Both take a list of jobs and give their results in the same order.

A worker process that dies (killed, out of memory) takes only the job that it held with it: the job is tried again in a new
worker, and after `attempts` it is a failed result. Workers start anew (spawn), so evaluator and jobs must pickle.
"""

import contextlib
import multiprocessing
import pickle
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeAlias

from paredown.core.errors import SearchError
from paredown.nas.evaluators.evaluator import Evaluator, Function, Job, as_evaluator, failure, run_job
from paredown.nas.problem import Result

Done: TypeAlias = Callable[[Result], None]

_LAST_WORDS = 5.0  # seconds that a process whose pipe has ended has to end as well


class Executor(Protocol):
    """capacity: how many jobs it works on at once. A cluster engine takes the same three."""

    evaluator: Evaluator
    capacity: int

    def run(self, jobs: Sequence[Job], done: Done) -> list[Result]:
        """Results in the order of the jobs; `done` is called with each as soon as it is there."""
        ...


class Serial:
    """One job after the other, in this process."""

    capacity = 1

    def __init__(self, evaluate: Evaluator | Function) -> None:
        self.evaluator = as_evaluator(evaluate)

    def run(self, jobs: Sequence[Job], done: Done) -> list[Result]:
        results = []
        for job in jobs:
            result = run_job(self.evaluator, job)
            done(result)
            results.append(result)
        return results


@contextlib.contextmanager
def working(make: Callable[[Any], Executor], evaluator: Evaluator) -> Iterator[Executor]:
    """What is made of the evaluator, its processes ended afterwards. Raises SearchError where that is no executor."""
    try:
        executor = make(evaluator)
    except TypeError:  # no function, or not of an evaluator
        executor = None
    if executor is None or not all(hasattr(executor, name) for name in ("run", "capacity", "evaluator")):
        raise SearchError(
            "executor makes an executor of an evaluator", got=repr(make), remedy="write functools.partial(Processes, workers=2)"
        )
    with contextlib.ExitStack() as stack:
        if hasattr(executor, "close"):
            stack.callback(executor.close)
        yield executor


class _Worker:
    """A process, the pipe to it, and the place of the job that it holds (None: idle)."""

    def __init__(self, evaluator: Evaluator) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, evaluator))  # it may have children: data loaders
        self.process.start()
        theirs.close()
        self.place: int | None = None

    def died_with(self) -> int | None:
        """The exit code of a process whose pipe has ended."""
        self.process.join(_LAST_WORDS)
        return self.process.exitcode

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


class Processes:
    """`workers` processes; a context manager, or `close()` it. attempts: how often a job whose worker died is tried in all."""

    def __init__(self, evaluate: Evaluator | Function, *, workers: int = 2, attempts: int = 3) -> None:
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (workers, attempts))
        if not whole or workers < 1 or attempts < 1:
            raise SearchError(
                "workers and attempts are whole numbers of at least 1", got=(workers, attempts), remedy="write workers=2"
            )
        self.evaluator = as_evaluator(evaluate)
        self.capacity, self.attempts = workers, attempts
        self.workers: list[_Worker] = []
        weakref.finalize(self, _end, self.workers)  # also when Python ends, which else waits for them
        try:
            pickle.dumps(self.evaluator)
        except Exception as error:  # pickle raises its own, AttributeError or TypeError
            raise SearchError(
                "an evaluator that other processes run must pickle", got=str(error), remedy="make it a module-level function"
            ) from error

    def run(self, jobs: Sequence[Job], done: Done) -> list[Result]:
        results: dict[int, Result] = {}
        todo, tries = deque(range(len(jobs))), [0] * len(jobs)
        try:
            while len(results) < len(jobs):
                self._hand_out(jobs, todo)
                busy = [worker for worker in self.workers if worker.place is not None]
                wait([worker.pipe for worker in busy])
                for worker in busy:
                    if worker.pipe.poll():
                        self._take(worker, jobs, todo, tries, results, done)
        except BaseException:  # what workers still have to say must not answer the next jobs
            self.close()
            raise
        return [results[i] for i in range(len(jobs))]

    def close(self) -> None:
        _end(self.workers)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _hand_out(self, jobs: Sequence[Job], todo: deque[int]) -> None:
        while todo:
            idle = next((worker for worker in self.workers if worker.place is None), None)
            if idle is None and len(self.workers) >= self.capacity:
                return
            if idle is None:
                idle = _Worker(self.evaluator)
                self.workers.append(idle)
            idle.place = todo.popleft()
            try:
                idle.pipe.send(jobs[idle.place])
            except OSError:  # it died while idle: the pipe reports that below
                return

    def _take(
        self, worker: _Worker, jobs: Sequence[Job], todo: deque[int], tries: list[int], results: dict[int, Result], done: Done
    ) -> None:
        """What a worker has to say: a result, or (end of file) that it died."""
        assert worker.place is not None  # only busy workers are listened to
        place, worker.place = worker.place, None
        try:
            result: Result = worker.pipe.recv()
        except (EOFError, OSError):
            code = worker.died_with()
            worker.end()
            self.workers.remove(worker)
            tries[place] += 1
            if tries[place] < self.attempts:
                todo.append(place)
                return
            result = failure(
                jobs[place], self.evaluator.source, f"its worker died {self.attempts} times, last with exit code {code}"
            )
        results[place] = result
        done(result)


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()
    workers.clear()


def _serve(pipe: Connection, evaluator: Evaluator) -> None:
    """A worker's life: jobs in, results out, until the pipe is closed."""
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(run_job(evaluator, job))
        except OSError:  # nobody waits for it any more
            return
