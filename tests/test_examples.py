"""The examples run from beginning to end, on less data than they are meant for."""

import importlib
import itertools
import pathlib
import re
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import paredown
from paredown.core.target import Target
from paredown.deploy.session import load
from paredown.measure.cost import count_macs, count_parameters

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.mark.slow
def test_resnet18_in_int8_three_ways(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    example("resnet18_int8", monkeypatch).main(256, "2 steps", "2 steps")
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip().partition("  ")[0] for line in lines if "fine-tuned" in line] == [
        "linear, fine-tuned", "asymmetric, fine-tuned", "mixed, 4 bits on average, fine-tuned", "mixed by the rule, fine-tuned",
    ]  # fmt: skip


def test_nas201_is_searched_twice_and_each_winner_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    module = example("nas201_ppo", monkeypatch)
    if not (EXAMPLES.parents[1] / "shared" / "data").is_dir():
        pytest.skip("needs the table of NAS-Bench-201")
    monkeypatch.setattr(module, "PAGES", tmp_path)
    module.main(1)
    out = capsys.readouterr().out
    tests = [float(accuracy) for accuracy in re.findall(r"test accuracy after 200 epochs ([\d.]+)", out)]
    assert len(tests) == 2 and min(tests) > 93 and len(re.findall(r"winner \|", out)) == 2
    assert out.count("its network:") == 2 and len(list(tmp_path.glob("*.html"))) == 2
    bests = [float(best) for best in re.findall(r"best 12-epoch validation accuracy ([\d.]+)", out)]
    assert len(bests) > 10


@pytest.mark.slow
def test_a_small_resnet18_learns_from_a_resnet50(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example("teacher_student", monkeypatch).main(200, "2 steps")
    out = capsys.readouterr().out
    assert [line.split("  ")[1].partition(", ")[2] for line in out.splitlines() if " % of " in line] == [
        "no teacher", "soft labels", "attention transfer", "both",
    ]  # fmt: skip
    assert re.search(r"^  stages\.\d <- stages\.\d$", out, re.MULTILINE)


@pytest.mark.slow
def test_sensitivity_takes_single_weights_then_channels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("resnet18_sensitivity", monkeypatch)
    last = list[bool]()
    monkeypatch.setattr(module, "full_resnet18", lambda: last.append(True))  # has a test of its own
    module.main(256)
    out = capsys.readouterr().out
    means = [float(mean) for mean in re.findall(r"^  [\w.]+\.weight +(\d\S+)$", out, re.MULTILINE)]
    assert len(means) == 6 and means[0] > 0 and means == sorted(means)
    rows = re.findall(r"^  (\w.*?) +([\d.]+) % +([\d,]+) parameters, +([\d,]+) zeros$", out, re.MULTILINE)
    names, accuracies = [name for name, *_ in rows], [float(accuracy) for _, accuracy, *_ in rows]
    parameters, zeros = ([int(row[i].replace(",", "")) for row in rows] for i in (2, 3))
    assert re.fullmatch(r"after pruning \d0 % of the MACs", names.pop(4))
    assert names == ["before", "after pruning", "after fine-tuning", "before", "after fine-tuning"] and last
    assert all(0 <= accuracy <= 100 for accuracy in accuracies)
    assert parameters[:4] == [parameters[0]] * 4 and 0 < parameters[5] == parameters[4] <= parameters[0] / 2
    assert zeros[0] == 0 and 0.2 * parameters[0] < zeros[1] == zeros[2] < parameters[0]  # fine-tuning keeps them


@pytest.mark.slow
def test_sensitivity_cuts_the_full_resnet18_both_ways_down_to_files_that_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision")
    export, seen, whole = paredown.export, list[nn.Module](), list[nn.Module]()

    def checked(model: nn.Module, task: paredown.Task, path: pathlib.Path) -> Any:
        """The file that the example writes, run by ONNX Runtime, gives what the model gives, at another batch size too."""
        artifact = export(model, task, path=path)
        for x in (*task.inputs, torch.randn(3, 3, 224, 224)):
            with torch.no_grad():
                expected = model.eval()(x)
            found = torch.as_tensor(load(path, Target())(x.numpy()))
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        seen.append(model)
        whole.append(task.model)
        return artifact

    monkeypatch.setattr(paredown, "export", checked)
    torch.manual_seed(0)
    module = example("resnet18_sensitivity", monkeypatch)
    module.full_resnet18()
    counts = map(_number, re.findall(r"\d[\d,]{5,}", capsys.readouterr().out))
    of_sparse, zeros, sparse_bytes, of_pruned, pruned_bytes = counts
    sparse, pruned = seen
    assert of_sparse == count_parameters(whole[0]) == 11_689_512 and of_pruned == count_parameters(pruned)
    assert zeros == module.zeros(sparse) and 0.3 * of_sparse < zeros < 0.9 * of_sparse
    assert of_pruned < 0.6 * of_sparse and 3.9 * of_pruned < pruned_bytes < 4.1 * of_pruned  # batch norms are folded
    assert 3.9 * of_sparse < sparse_bytes < 4.1 * of_sparse  # zeros take bytes
    x = torch.randn(2, 3, 224, 224)
    assert count_macs(pruned, x) <= 0.5 * count_macs(whole[0], x)


@pytest.mark.slow
def test_channel_attention_removes_nothing_but_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("resnet18_channel_attention", monkeypatch)
    models, describe = dict[str, nn.Module](), module.describe

    def described(name: str, model: nn.Module, task: paredown.Task) -> None:
        describe(name, model, task)
        assert 0 <= module.accuracy(model, task) <= 1
        models[name] = model

    monkeypatch.setattr(module, "describe", described)
    module.main(400, 1)
    assert [*models] == ["trained", "gated and folded", "pruned", "recovered"]
    x = torch.randn(2, 3, 32, 32)
    macs, parameters = ([count(m, x) for m in models.values()] for count in (count_macs, lambda m, _: count_parameters(m)))
    assert macs[0] == macs[1] and 0.4 * macs[0] < macs[2] == macs[3] <= 0.5 * macs[0]
    assert parameters[0] == parameters[1] and parameters[2] == parameters[3] < 0.6 * parameters[0]
    with torch.no_grad():
        trained, folded, pruned, recovered = (model.eval()(x) for model in models.values())
    assert torch.allclose(folded, pruned, rtol=1e-4, atol=1e-5)
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in itertools.pairwise((trained, folded, recovered)))


def _number(text: str) -> int:
    return int(text.replace(",", ""))
