"""The `longrec` command in the tests' own process."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from longrec.cli.main import app


@pytest.fixture(scope="session")
def longrec() -> Callable[..., str]:
    """Runs `longrec ARGUMENTS`, which must succeed or raise, and returns what it printed."""

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run
