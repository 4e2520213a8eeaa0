"""The `longrec` command: what it lists, what it loads for that, how it fails."""

import json
import subprocess
import sys

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from longrec.cli.main import app

NAMES = ["data", "train", "evaluate", "export", "rollback", "serve", "stream", "recommend", "bench", "doctor"]


def run_python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout


def test_help_lists_every_subcommand_and_loads_none() -> None:
    program = """
import json, sys
from typer.testing import CliRunner
from longrec.cli.main import app
result = CliRunner().invoke(app, ["--help"])
print(json.dumps([result.exit_code, result.output, sorted(sys.modules)]))
"""
    status, output, loaded = json.loads(run_python(program))
    assert status == 0
    assert all(f" {name} " in output for name in NAMES)
    assert {"torch", "polars", "pydantic", "numpy", "tritonclient"}.isdisjoint(loaded)
    assert not [module for module in loaded if module.startswith("longrec.cli.") and module != "longrec.cli.main"]


@pytest.mark.parametrize("name", NAMES)
def test_a_subcommands_line_in_the_list_is_its_own_first_sentence(name: str) -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    context = group.make_context("longrec", [name], resilient_parsing=True)
    listed, (_, real, _) = group.get_command(context, name), group.resolve_command(context, [name])
    assert listed is not None
    assert real is not None
    assert " ".join((real.help or "").split()).startswith(listed.help or "nothing")


@pytest.mark.parametrize("name", NAMES)
def test_every_subcommand_has_help(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f" {name} [OPTIONS]" in result.output


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.startswith("longrec ")


def test_an_unknown_subcommand_is_named() -> None:
    result = CliRunner().invoke(app, ["dat"])
    assert result.exit_code == 2
    assert "No such command 'dat'" in result.output


def test_an_error_is_one_line_and_exit_status_2() -> None:
    command = [sys.executable, "-c", "from longrec.cli.main import main; main()", "recommend", "u", "--k", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "longrec: k=0: expected an integer in 1..256\n"
