"""The settings of the server: each is documented here, and `guardreasoner serve --help` tells the same."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from guardreasoner_guard.checks import OnFailure
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.judge import Reasoning
from guardreasoner_guard.model_dir import Device
from guardreasoner_guard.observed import Observer
from guardreasoner_guard.policy import Policy
from guardreasoner_guard.verdict import Task

from .redaction import Texts


def variable(setting: str) -> str:
    """The environment variable that a setting is read from."""
    return f"GUARDREASONER_SERVE_{setting.upper()}"


class ServerSettings(BaseModel):
    """What `guardreasoner serve` can be told.

    On the command line `api_keys` is `--api-keys`, in the environment `GUARDREASONER_SERVE_API_KEYS`; where a
    setting takes several values, the environment has blanks between them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one of this machine's."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes one that is free."""

    model: str = "bundled"
    """The guard model: bundled, a model directory, or a hub id; with `url` what that server calls it."""
    device: Device = "auto"
    """auto, cpu or cuda."""
    url: str | None = Field(default=None, repr=False)
    """An OpenAI-compatible server (vLLM) that holds the guard model; its key is read from GUARDREASONER_API_KEY."""
    template: str = "guardreasoner/1"
    """With `url`: the wording the guard model was trained on."""
    reasoning: Reasoning = "adaptive"
    """adaptive reasons in doubt and for what would be blocked; always; or never."""
    block: tuple[Task, ...] = ("request", "response")
    """Tasks whose positive label blocks: request, completion (a refusal), response."""
    shadow: bool = False
    """Judge and report, but block nothing."""
    on_failure: OnFailure = "block"
    """What follows when no judgement was reached: block, pass, or raise, which answers with status 503."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds one check may take, waiting for its turn included."""

    upstream: str | None = Field(default=None, repr=False)
    """An OpenAI-compatible server whose /v1/chat/completions is guarded here, with or without /v1."""
    upstream_key: SecretStr | None = None
    """Its API key. Without it, and without `api_keys`, callers' own keys are passed on to it."""
    upstream_timeout: float = Field(default=120.0, gt=0)
    """Seconds the upstream may be silent."""
    beside: bool = True
    """Judge a chat's request while the upstream is at work already; it is stopped where the request is blocked."""
    hold: Annotated[int, Field(ge=2)] | Literal["sentence", "answer"] = 64
    """How much of a streamed answer is held back until it is cleared: so many tokens, sentence, or answer."""
    attachments: Literal["refuse", "pass"] = "refuse"
    """What becomes of a chat with images, sound or files, which the guard cannot read: refuse, or pass unread."""

    api_keys: tuple[Annotated[SecretStr, Field(min_length=16)], ...] = ()
    """Keys that callers must send one of, as a bearer token; without any, everyone is let in. Better set in the
    environment, since others on a machine can read command lines."""
    rate: int | None = Field(default=None, gt=0)
    """Requests a minute a key may make; without `api_keys`, an address. More are answered with status 429."""
    max_body: int = Field(default=1_000_000, gt=0)
    """Largest request body, in bytes. A larger one is answered with status 413."""
    max_in_flight: int = Field(default=256, gt=0)
    """Most requests under way at once. More are answered with status 503."""
    grace: int = Field(default=30, ge=0)
    """Seconds that requests under way may still take once the server is told to stop."""

    playground: bool = True
    """Show the playground at /."""
    audit: Path | None = None
    """An SQLite file in which verdicts are kept for review; without it none are."""
    audit_days: float = Field(default=30.0, gt=0)
    """Days for which the audit log keeps a verdict."""
    audit_texts: Texts = "redacted"
    """What the audit log keeps of the texts: full, redacted or hashed."""

    @field_validator("api_keys", "block", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        return given.split() if isinstance(given, str) else given

    @field_validator("url", "upstream")
    @classmethod
    def _is_url(cls, given: str | None) -> str | None:
        if given is not None and not (urlsplit(given).scheme in ("http", "https") and urlsplit(given).hostname):
            raise ValueError("it is no server's URL. Name one like http://localhost:8000")
        return given

    @model_validator(mode="after")
    def _lends_no_key(self) -> Self:
        if self.upstream_key is not None and not self.api_keys and not is_loopback(self.host):
            raise ValueError(
                f"whoever reaches {self.host} could spend the upstream's key. Set api_keys, or listen on 127.0.0.1"
            )
        return self

    @property
    def is_open(self) -> bool:
        """Whether anyone who can reach the machine is let in."""
        return not self.api_keys and not is_loopback(self.host)

    def open_guard(self) -> GuardReasonerGuard:
        """The guard that these settings describe.

        Raises:
            GuardError: The model is missing or cannot be run here.
        """
        if self.url is None:
            guard = GuardReasonerGuard(self.model, reasoning=self.reasoning, device=self.device)
        else:
            from guardreasoner_guard.cli_options import served_guard

            guard = served_guard([self.url], self.model, self.template, self.reasoning)
        policy = Policy(block=self.block, shadow=self.shadow)
        return guard.model_copy(update={"policy": policy, "on_failure": self.on_failure, "timeout": self.timeout})


def observed(guard: GuardReasonerGuard, *observers: Observer) -> GuardReasonerGuard:
    """The guard with further observers; both are of one model."""
    return guard.model_copy(update={"observers": (*guard.observers, *observers)})


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
