"""The files that start longrec: they can be read, and call the command as it is."""

import configparser
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from longrec.cli.main import app

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd/longrec.service"
DOCKERFILE = (DEPLOY / "docker/Dockerfile").read_text()


def calls() -> list[list[str]]:
    """Every command line of `longrec`, without its name."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    (pod,) = [part for part in manifests() if part["kind"] == "StatefulSet"]
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    health = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    command = re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert health
    assert command
    probes = [container[name]["exec"]["command"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    named = [unit["Service"]["ExecStart"].split(), json.loads(health[1]), *probes]
    assert all(Path(line[0]).name == "longrec" for line in named)
    return [line[1:] for line in named] + [json.loads(command[1]), container["args"]]


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes/longrec.yaml").read_text()))


@pytest.mark.parametrize("line", calls(), ids=" ".join)
def test_the_command_takes_what_it_is_given(line: list[str]) -> None:
    group = typer.main.get_command(app)
    with typer.Context(group) as context:  # parsed, not run
        _, command, rest = group.resolve_command(context, line)  # type: ignore[attr-defined]
        assert command.make_context(line[0], rest).params


def test_yaml_can_be_read() -> None:
    assert [part["kind"] for part in manifests()] == ["Service", "StatefulSet"]
    compose = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
    assert (DEPLOY / "docker" / compose["services"]["longrec"]["build"]["context"] / "setup.py").resolve().is_file()
    prometheus = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert all((DEPLOY / "prometheus" / name).is_file() for name in prometheus["rule_files"])
    assert [job["job_name"] for job in prometheus["scrape_configs"]] == ["longrec"]
