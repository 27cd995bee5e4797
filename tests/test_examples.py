"""The examples run from beginning to end, on less data than they are meant for."""

import importlib
import pathlib

import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_resnet18_in_int8_three_ways(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    importlib.import_module("resnet18_int8").main(256, "2 steps", "2 steps")
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip().partition("  ")[0] for line in lines if "fine-tuned" in line] == [
        "linear, fine-tuned", "asymmetric, fine-tuned", "mixed, 4 bits on average, fine-tuned", "mixed by the rule, fine-tuned",
    ]  # fmt: skip
