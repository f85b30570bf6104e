"""`bn-detect`: subcommands, the usage, and what is said without Detectron2."""

import importlib
import sys
from types import SimpleNamespace

import pytest

from bn_detect.commands.main import SUBCOMMANDS, main


def test_the_usage_names_every_subcommand(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in SUBCOMMANDS)
    assert main([]) == 2


def test_a_misspelt_subcommand(capsys):
    assert main(["precise_bn"]) == 2
    assert "'precise_bn' is no subcommand" in (printed := capsys.readouterr().err)
    assert "did you mean precise-bn?" in printed


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: bn-detect {name}" in printed
    lines = printed.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100  # a screen
    assert printed.partition("examples:")[2].count(f"bn-detect {name} ") >= 2


@pytest.mark.parametrize("cause", ["detectron2", "fvcore"])
def test_without_detectron2_or_what_it_needs(cause, monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {cause!r}", name=cause)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setitem(sys.modules, "detectron2.modeling", None)  # it cannot be imported
    monkeypatch.delitem(sys.modules, "bn_detect.needs_detectron2")
    assert main(["train"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: bn-detect train: this part of bn_detect needs Detectron2")
    assert "detectron2.modeling" in printed and "make setup" in printed
    assert printed.count("\n") == 1


def test_another_module_that_is_missing_is_a_fault(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'tabulate'", name="tabulate")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        main(["train"])


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_mistake_on_the_command_line_is_one_line(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--unknown-option", "x"])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert f"bn-detect {name}" in printed and "--help lists the options" in printed


@pytest.mark.parametrize("terminal", [True, False])
def test_at_a_terminal_it_says_at_once_what_takes_seconds(terminal, monkeypatch, capsys):
    before = []

    def slow(name):
        before.append(capsys.readouterr().err)
        return SimpleNamespace(main=lambda words: 7)

    monkeypatch.setattr(importlib, "import_module", slow)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert main(["train"]) == 7
    assert before[0].startswith("Loading PyTorch") if terminal else before == [""]
    assert capsys.readouterr().err == ("\r\033[K" if terminal else "")
