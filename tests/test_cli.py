"""The command line as a user meets it: exit status, what is written, and errors of one line with a remedy."""

import io
import os
import sys
from pathlib import Path

import pytest

from paredown.cli import Terminal, main, run

TASK = """
import torch
import paredown
from tests.conftest import make_small_resnet, pattern_batches

def task():
    return paredown.Task(
        model=make_small_resnet(8), example_inputs=(torch.randn(2, 1, 8, 8),),
        train=pattern_batches(256, 1), validation=pattern_batches(400, 2),
    )

made = {}

def number():
    return 3

def broken():
    raise ValueError("no data here")

def leaving():
    raise SystemExit(0)

def failing():
    made = task()
    def recover(model):
        raise ZeroDivisionError("in the user's own code")
    return paredown.Task(made.model, made.example_inputs, made.train, made.validation, recover=recover)

class Tail(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.matrix_exp(torch.diag_embed(torch.tanh(x))).diagonal(dim1=-2, dim2=-1)

def inexpressible():
    made = task()
    return paredown.Task(torch.nn.Sequential(made.model, Tail()), made.example_inputs, made.train, made.validation)

def beside():
    from net_beside_the_task import size
    raise ValueError(f"found {size}")
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "task_of_the_test.py"
    path.write_text(TASK)
    (tmp_path / "net_beside_the_task.py").write_text("size = 8")
    return path


@pytest.fixture
def int8(tmp_path: Path) -> Path:
    path = tmp_path / "int8.yaml"
    path.write_text("steps:\n- step: quantize\n  samples: 64\n")
    return path


def test_compress_then_report_then_measure(
    task_file: Path, int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["compress", str(task_file), "--max-drop", "0.2", "--size", "0.9x", "--recipe", str(int8), "--out", str(out)]
    assert run([*arguments, "--batch", "8", "--threads", "1"]) == 0
    assert (out / "report.html").is_file() and "quantize" in capsys.readouterr().out
    (out / "report.html").unlink()
    assert run(["report", str(out / "report.json")]) == 0
    assert (out / "report.html").is_file()
    odd = out.rename(tmp_path / "run [v1]")
    assert run(["report", str(odd)]) == 0 and "[v1]" in capsys.readouterr().out
    odd.rename(out)
    baseline = next(path for path in out.glob("stages/*/model.onnx") if path.stat().st_size > (out / "model.onnx").stat().st_size)
    assert run(["measure", str(out / "model.onnx"), "--against", str(baseline), "--threads", "1"]) == 0
    assert "latency" in capsys.readouterr().out


def test_budget_not_met_is_exit_status_1_and_the_front_is_written(task_file: Path, int8: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["compress", str(task_file), "--max-drop", "0.2", "--size", "0.01x", "--recipe", str(int8), "--out", str(out)]
    assert run([*arguments, "--threads", "1"]) == 1
    assert (out / "report.json").is_file() and (out / "model.onnx").is_file()


def test_exception_of_the_users_own_code_is_a_traceback_and_exit_status_3(
    task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "distill.yaml"
    recipe.write_text("steps:\n- step: distill\n")
    arguments = ["compress", f"{task_file}:failing", "--max-drop", "0.2", "--size", "0.9x", "--recipe", str(recipe)]
    assert run([*arguments, "--threads", "1", "--out", str(tmp_path / "run")]) == 3
    assert "ZeroDivisionError: in the user's own code" in capsys.readouterr().err


def test_signs_that_the_terminal_cannot_show_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    monkeypatch.setattr("sys.argv", ["paredown", "report", "✓"])
    with pytest.raises(SystemExit):
        main()
    sys.stdout.write("✓ within\n")
    assert written.getvalue() == b"? within\n"


def test_an_interrupted_command_says_how_to_go_on(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("paredown.pipeline.compress.compress", interrupted)
    assert run(["compress", str(task_file), "--size", "0.5x", "--out", str(tmp_path / "run")]) == 130
    assert "run the same command with --resume" in capsys.readouterr().err


def test_a_reader_that_leaves_early_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        terminal = Terminal(file=pipe)
        terminal.print("a table")
        terminal.print("and another")
        assert terminal.quiet


def test_doctor_lists_groups_and_barriers(task_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(task_file), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "block1.conv1" in printed and "ms" in printed and "masked" not in printed


def test_doctor_lists_groups_and_barriers_of_a_model_that_no_file_can_hold(
    task_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", f"{task_file}:inexpressible", "--threads", "1"]) == 2
    printed = capsys.readouterr()
    assert "0.block1.conv1" in printed.out and "can't be pruned" in printed.out and "matrix_exp" in printed.err


def test_doctor_shows_sensitivity_on_request(task_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(task_file), "--threads", "1", "--sensitivity"]) == 0
    found = capsys.readouterr()
    assert "sensitivity to masked channels: done" in found.err and "sensitivity to masked weights: done" in found.err
    assert "first 256 validation samples" in " ".join(found.out.split())
    assert found.out.count("block1.conv1") == 3  # what can be pruned, and both tables of sensitivity


@pytest.mark.slow
def test_doctor_shows_what_quantization_costs_each_layer(task_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(task_file), "--threads", "1", "--quantization"]) == 0
    printed = capsys.readouterr().out
    assert "noisiest first" in printed and "saturated" in printed and printed.count("block1.conv1") == 2
    assert "6 QLinearConv on integers; 1 ReduceMean in float" in " ".join(printed.split())


BAD = [
    ("no such file", ["compress", "absent.py", "--size", "0.5x"], "TASK.py"),
    ("not Python", ["compress", "README.md", "--size", "0.5x"], "Python file"),
    ("no such function", ["compress", "{task}:nothing", "--size", "0.5x"], "must define nothing()"),
    ("empty name of a function", ["doctor", "{task}:"], "write TASK.py or TASK.py:NAME"),
    ("no function", ["doctor", "{task}:made"], "got a dict of that name; write def made(): return paredown.Task(...)"),
    ("function returns no task", ["compress", "{task}:number", "--size", "0.5x"], "got int"),
    ("function raises", ["compress", "{task}:broken", "--size", "0.5x"], "task_of_the_test.py:18: ValueError: no data here"),
    ("function that exits", ["doctor", "{task}:leaving"], "task_of_the_test.py:21: SystemExit"),
    ("function that imports from beside it", ["doctor", "{task}:beside"], "found 8"),
    ("no limit at all", ["compress", "{task}"], 'add latency="0.4x"'),
    ("drop of 300 %", ["compress", "{task}", "--max-drop", "3", "--size", "0.5x"], "did you mean 0.03?"),
    ("drop without %", ["compress", "{task}", "--max-drop", "one", "--size", "0.5x"], 'write "1%"'),
    ("latency without unit", ["compress", "{task}", "--latency", "3"], '"3 ms"'),
    ("size in furlongs", ["compress", "{task}", "--size", "3 furlongs"], '"5 MB"'),
    ("unknown runtime", ["compress", "{task}", "--size", "0.5x", "--target", "tensorrt"], "onnxruntime, openvino"),
    ("no batch", ["compress", "{task}", "--size", "0.5x", "--batch", "0"], "batch=1"),
    ("more samples than fit", ["doctor", "{task}", "--threads", "1", "--batch", "100000000000"], "choose a smaller batch"),
    ("too many threads", ["compress", "{task}", "--size", "0.5x", "--threads", "9999"], "cores of this machine"),
    ("unknown effort", ["compress", "{task}", "--size", "0.5x", "--effort", "a lot"], '"3 epochs"'),
    ("no learning rate", ["compress", "{task}", "--size", "0.5x", "--learning-rate", "0"], "learning_rate must be a"),
    ("absent recipe", ["compress", "{task}", "--size", "0.5x", "--recipe", "absent.yaml"], "must be a file"),
    ("unknown step", ["compress", "{task}", "--size", "0.5x", "--recipe", "{bad}"], "prune, sparsify, distill, quantize"),
    ("unknown option", ["compress", "{task}", "--sise", "0.5x"], "--size"),
    ("no run there", ["report", "{folder}"], "report.json"),
    ("no model there", ["measure", "absent.onnx", "--against", "absent.onnx"], "absent.onnx"),
    ("text as a model", ["measure", "README.md", "--against", "README.md"], "ONNX"),
]


@pytest.mark.parametrize(("arguments", "remedy"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_exit_status_2_and_one_line_with_the_remedy(
    task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], remedy: str
) -> None:
    bad, folder, out = tmp_path / "bad.yaml", tmp_path / "empty", tmp_path / "out"
    bad.write_text("steps:\n- step: shrink\n")
    folder.mkdir()
    filled = [text.format(task=task_file, bad=bad, folder=folder) for text in arguments]
    assert run([*filled, "--out", str(out)] if filled[0] == "compress" else filled) == 2
    error = capsys.readouterr().err
    assert remedy in error and "Traceback" not in error
    assert not out.exists()
