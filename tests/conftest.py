"""Shared fixtures: a small residual convnet, and the data beside the project (skipped where it is absent)."""

import contextlib
import copy
import functools
import importlib.util
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paredown.core.target import Target
from paredown.deploy.session import load
from paredown.measure.interleave import interleaved
from paredown.measure.latency import Timed
from paredown.task.task import Task

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def translations_listed_once() -> Iterator[None]:
    """torch's exporter lists its translations in every export, for which onnxscript parses the source of each, 0.6 s in all
    (torch 2.14, onnxscript 0.7): a quarter of the export of a small net, of which the tests make hundreds.
    """
    from torch.onnx._internal.exporter._registration import onnxscript_apis

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(onnxscript_apis.get_torchlib_ops))
        yield


@pytest.fixture(autouse=True)
def rounds_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is timed in the process of the test, three pairs a round, both files loaded once: starts and loads take longer
    than a small model's rounds. As a user gets them, each in a process of its own: tests/deploy/test_stopwatch.py.
    """

    @contextlib.contextmanager
    def rounds(baseline: pathlib.Path, candidate: pathlib.Path, target: Target, inputs: Any) -> Iterator[Timed]:
        before, after = (functools.partial(load(file, target), *inputs) for file in (baseline, candidate))
        yield lambda pairs: interleaved(before, after, min(3, pairs), warmup=3)

    for module in ("evaluate", "compare"):
        monkeypatch.setattr(f"paredown.pipeline.{module}.rounds", rounds)


class SmallBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Inputs (batch, 1, 8, 8); 10 classes."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block1 = SmallBlock(width, width, 1)
        self.block2 = SmallBlock(width, 2 * width, 2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.stem(x)))
        return self.head(x.mean((2, 3)))


def make_small_resnet(width: int = 8, seed: int = 0) -> SmallResNet:
    """A SmallResNet in evaluation mode whose batch norms have seen data (no statistic is left at 0 or 1)."""
    torch.manual_seed(seed)
    model = SmallResNet(width)
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(32, 1, 8, 8))
    return model.eval()


@pytest.fixture
def small_resnet() -> SmallResNet:
    return make_small_resnet()


@pytest.fixture(scope="session")
def shared_data() -> ModuleType:
    """The `load` module of the data beside the project."""
    path = SHARED / "load.py"
    if not path.exists():
        pytest.skip("the data beside the project (../shared/data) is absent")
    spec = importlib.util.spec_from_file_location("shared_data_load", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Every parameter and buffer, in any bit."""
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def after(ending: signal.Signals, start: str, last: str) -> str:
    """What `last` still writes when the process of `start`, which has started that of `last`, alone gets a signal. Linux.

    Both are code. `last` is to write "begun" and a line's end first, into the file that `os.environ["OUT"]` names: the output of
    the first process, which therefore ends when neither runs any more.
    """
    before = "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); last = sys.argv[1]\n"
    argv = [sys.executable, "-c", before + "os.environ['OUT'] = f'/proc/{os.getpid()}/fd/1'\n" + start, last]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "begun\n"
        first.send_signal(ending)
        return first.stdout.read()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is to come out bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pattern_batches(samples: int, seed: int, batch: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Ten fixed 8x8 patterns in noise: a problem that a SmallResNet learns to about 99 % in seconds."""
    patterns = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (samples,), generator=draw)
    images = patterns[labels] + 0.9 * torch.randn(samples, 1, 8, 8, generator=draw)
    return list(zip(images.split(batch), labels.split(batch), strict=True))


@pytest.fixture(scope="session")
def trained_small_resnet() -> SmallResNet:
    """A SmallResNet of width 16 trained on the patterns."""
    model = make_small_resnet(16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(6):
        for x, y in pattern_batches(640, seed=1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture
def pattern_task(trained_small_resnet: SmallResNet) -> Task:
    """A task that a test may compress."""
    return make_pattern_task(trained_small_resnet)


def make_pattern_task(trained_small_resnet: SmallResNet) -> Task:
    """A copy of a trained SmallResNet, 640 training samples, 640 for validation, 320 for the test."""
    return Task(
        model=copy.deepcopy(trained_small_resnet),
        example_inputs=(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)),),
        train=pattern_batches(640, seed=1),
        validation=pattern_batches(640, seed=2),
        test=pattern_batches(320, seed=3),
        name="patterns",
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="write what is rendered now into tests/golden/")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """A function (file name, text) that compares the text with tests/golden/NAME, or replaces that file under --overwrite."""

    def check(name: str, text: str) -> None:
        file = GOLDEN / name
        if request.config.getoption("--overwrite"):
            GOLDEN.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert file.is_file(), f"tests/golden/{name} is missing: run pytest with --overwrite and read the difference"
        assert text == file.read_text(encoding="utf-8"), f"tests/golden/{name} differs; if that is meant, run with --overwrite"

    return check
