"""The documents say what the program does: the same commands in both languages, options that exist, examples that parse."""

import pathlib
import re

import pytest
import typer.main

from paredown.cli import app

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
    for name in (*READMES, "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / name).parent.joinpath(link).exists(), (name, link)
