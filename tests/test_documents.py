"""The documents say what the program does: the same commands in both languages, options that exist, examples that parse."""

import dataclasses
import pathlib
import re

import pytest
import torch
import typer.main
from torch import nn

import paredown
from paredown.cli import app
from paredown.task.task import Task
from tests.conftest import make_small_resnet

ROOT = pathlib.Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")


def blocks(name: str, language: str) -> list[str]:
    """The fenced code blocks of a language, without comments (they are translated)."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [re.sub(r" *(?:  |^)#.*", "", block, flags=re.MULTILINE) for block in found]


def options() -> dict[str, set[str]]:
    """Options of each command, as the command line declares them."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: {o for p in command.params for o in p.opts if o.startswith("--")} for name, command in commands.items()}


@pytest.mark.parametrize("language", ["sh", "python"])
def test_both_readmes_show_the_same_code(language: str) -> None:
    english, chinese = (blocks(name, language) for name in READMES)
    assert len(english) >= 2
    assert english == chinese


def test_both_readmes_have_the_same_sections_tables_and_figures() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in READMES]
    for pattern in (r"^## ", r"^\|", r"^- ", r"\{\{\w+\}\}", r"`--[a-z-]+`"):
        counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in texts]
        assert counts[0] == counts[1], pattern


def test_the_examples_of_distillation_run(pattern_task: Task, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for their length."""
    monkeypatch.chdir(tmp_path)
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    short = dataclasses.replace(pattern_task, train=[(x[:16], torch.arange(16) % 10), (x[16:], torch.arange(16) % 10)])
    pruned = paredown.prune(short, paredown.Prune(ratio=0.4))
    names = {"task": short, "pruned": pruned, "middle": make_small_resnet(12), "small": make_small_resnet(8), "print": str}
    code = "".join(blocks("docs/distillation.md", "python"))
    exec(re.sub(r'"\d epochs"', '"1 steps"', code), names)
    assert isinstance(names["student"], nn.Module) and len(names["students"]) == 2  # type: ignore[arg-type]  # a list


@pytest.mark.parametrize("name", READMES)
def test_python_examples_parse(name: str) -> None:
    for block in blocks(name, "python"):
        assert compile(block, name, "exec").co_code


def test_every_option_of_the_command_line_is_documented() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    declared = {option for found in options().values() for option in found} - {"--help"}
    documented = set(re.findall(r"`(--[a-z-]+)`", text)) | {"--against"}
    assert declared <= documented
    assert documented - {"--against"} <= declared


@pytest.mark.parametrize("name", READMES)
def test_commands_shown_use_options_that_exist(name: str) -> None:
    known, lines = options(), "\n".join(blocks(name, "sh")).splitlines()
    shown = [line.split() for line in lines if line.startswith("paredown ")]
    assert {words[1] for words in shown} == set(known)
    for words in shown:
        assert {word for word in words if word.startswith("--")} <= known[words[1]]


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md"])
def test_make_targets_named_in_documents_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", (ROOT / name).read_text(encoding="utf-8")))
    assert named and named <= targets


def test_links_between_documents_lead_somewhere() -> None:
    for name in (*READMES, "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/distillation.md", "docs/search.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / name).parent.joinpath(link).exists(), (name, link)
