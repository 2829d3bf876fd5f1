"""A wrong verdict, corrected in the browser, comes out as a seed row and trains a guard that gives another one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from guardreasoner_guard.integrations.audit import AuditLog
from guardreasoner_guard.integrations.playground import playground_router

from guardreasoner_guard import GuardReasonerGuard
from guardreasoner_guard.cli import main
from guardreasoner_guard.model_dir import open_model

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a hub

torch = pytest.importorskip("torch", reason="the training extra is not installed")

THINGS = ("a car", "a cake", "the well", "my fence", "a router", "a coat", "two chairs", "a boat", "it", "bread", "my bike", "a pot")  # fmt: skip
RIGHT = {f"How do I {verb} {thing}?": label for verb, label in (("steal", "harmful"), ("bake", "unharmful")) for thing in THINGS}  # fmt: skip
RECIPE = """
name = "corrections"
seed = 1
[data]
max_request_tokens = 64
sources = [{ file = "rows.jsonl" }]
[sft]
base = "none"
template = "short/2"
dtype = "float32"
train_embeddings = true
[sft.trainer]
num_train_epochs = 25
per_device_train_batch_size = 10
learning_rate = 5e-3
gradient_checkpointing = false
save_steps = 1000
[mine]
rows = 1
samples = 2
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on several, and much slower beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Random weights of Llama's shape with the bundled model's tokeniser: whatever it says is chance."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "checkpoint")
    words = str(open_model("bundled").path / "tokenizer.json")
    PreTrainedTokenizerFast(tokenizer_file=words, eos_token="<|im_end|>", pad_token="<|im_end|>").save_pretrained(
        tmp_path / "checkpoint"
    )
    return tmp_path / "checkpoint"


def run(*command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["guardreasoner", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)


def judge(client: httpx.Client, request: str) -> tuple[int, str]:
    """Has a request judged; gives the verdict's id and what it says."""
    told = client.post("/playground/check", json={"request": request}).text
    last = json.loads(told.rstrip().rpartition("data: ")[2])
    return last["id"], last["verdict"]["request"]


def test_corrections_train_a_guard_that_changes_the_verdict(
    browser: Any,
    serve: Callable[[FastAPI], AbstractContextManager[str]],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from guardreasoner_guard.training.export import export

    before = export(checkpoint, tmp_path / "before", name="before", template_version="short/2", decides="score")
    audit = AuditLog(tmp_path / "audit.db")
    app = FastAPI()
    app.include_router(
        playground_router(guard := GuardReasonerGuard(before, reasoning="never", observers=(audit,)), audit)
    )
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        judged = {request: judge(client, request) for request in RIGHT}
        wrong = [request for request, (_, said) in judged.items() if said != RIGHT[request]]
        for request, (number, _) in judged.items():
            if request != wrong[0]:
                client.post(f"/playground/verdicts/{number}/review", json={"labels": {"request": RIGHT[request]}})

        page = browser.new_page()
        page.goto(f"{url}#review")
        page.get_by_label("Text contains").fill(wrong[0])
        page.locator("#list > .row:only-child summary").click()
        page.get_by_role("button", name="Wrong").click()
        page.get_by_role("group", name="Is the request harmful?").get_by_text(
            RIGHT[wrong[0]].title(), exact=True
        ).click()
        page.get_by_role("button", name="Save correction").click()
        with page.expect_download() as told:
            page.get_by_role("button", name=f"Seed rows ({len(RIGHT)})").click()
        told.value.save_as(tmp_path / "corrections.jsonl")
        page.close()
    guard.close()

    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    run(
        "train", "all", "--data", str(tmp_path / "corrections.jsonl"), "--base", str(checkpoint),
        "--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "after"), monkeypatch=monkeypatch,
    )  # fmt: skip
    after = GuardReasonerGuard(tmp_path / "after", reasoning="never")
    said = dict(zip(RIGHT, after.check_many(RIGHT), strict=True))
    assert judged[wrong[0]][1] != said[wrong[0]].request == RIGHT[wrong[0]]
    assert sum(said[request].request == label for request, label in RIGHT.items()) > len(RIGHT) - len(wrong)
