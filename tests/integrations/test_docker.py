"""The images install what is there, and the server in them is set by what it knows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from guardreasoner_guard.integrations.server_settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {f"GUARDREASONER_SERVE_{name.upper()}" for name in ServerSettings.model_fields}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_an_image_copies_installs_and_sets_what_there_is(kind: str) -> None:
    text = (ROOT / "docker" / f"Dockerfile.{kind}").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY ([^-].*) \S+$", text, re.MULTILINE) for name in line.split()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name.split(".")[-1] for name in project["tool"]["setuptools"]["packages"]}
    assert {*packages, "pyproject.toml", project["project"]["readme"], "LICENSE"} == set(copied)
    [extras] = re.findall(r"'\.\[(.*)\]'", text)
    assert set(extras.split(",")) == {kind, "server"} <= set(project["project"]["optional-dependencies"])
    assert set(re.findall(r"GUARDREASONER_\w+", text)) <= FIELDS
    assert 'ENTRYPOINT ["guardreasoner", "serve"]' in text, "as a list, so that SIGTERM reaches it"
    assert re.findall(r"^USER (\w+)", text, re.MULTILINE) == ["guard"]


def test_the_composition_sets_what_there_is_and_vllm_only_where_it_is_asked_for() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert set(services["guard"]["environment"]) <= FIELDS
    assert "profiles" not in services["guard"] and services["vllm"]["profiles"] == ["vllm"]
    assert (ROOT / services["guard"]["build"]["dockerfile"]).exists()
    assert services["guard"]["ports"][0].startswith("127.0.0.1:"), "everyone's only where its operator says so"
    assert int(services["guard"]["stop_grace_period"].rstrip("s")) > ServerSettings().grace
