"""The playground shows a verdict as it is reached, the review desk takes corrections, and no judged text ever runs."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from guardreasoner_guard.integrations.audit import AuditLog
from guardreasoner_guard.integrations.playground import playground_router
from guardreasoner_guard.integrations.server import create_app
from guardreasoner_guard.integrations.server_settings import ServerSettings
from guardreasoner_guard.training.table import read_table
from pydantic import SecretStr

from guardreasoner_guard import BadInput, EngineError, GuardReasonerGuard, Policy, ScriptedEngine
from guardreasoner_guard.engine import Written
from guardreasoner_guard.template import Prompt

Serve = Callable[[FastAPI], AbstractContextManager[str]]

KEY = "a-key-that-is-long-enough"
ATTACK = (
    "<img src=x onerror=\"window.pwned = 1\"><script>window.pwned = 1</script></script></textarea>"
    "<a href='javascript:window.pwned=1'>bomb</a>\n\ndata: {\"verdict\": 1}\n\nevent: verdict"
)  # fmt: skip


class Halfway(ScriptedEngine):
    """Writes its first step, then waits to be told to go on; what ends it before is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.ended = threading.Event(), threading.Event()

    def generate(
        self, prompts: Sequence[Prompt], *, cancel: threading.Event | None = None, heard: Any = None, **settings: Any
    ) -> list[Written]:
        heard(0, "The first step.\n## Reasoning Step 2\nThe")
        try:
            while not self.go.wait(0.01):
                if cancel is not None and cancel.is_set():
                    raise EngineError("The call was cancelled.")
        finally:
            self.ended.set()
        return super().generate(prompts, cancel=cancel, heard=heard, **settings)


def key_needed(authorization: Annotated[str, Header()] = "") -> None:
    if authorization != f"Bearer {KEY}":
        raise HTTPException(401, "No key, or none that is known. Send one.")


def application(guard: GuardReasonerGuard, audit: AuditLog | None, prefix: str = "", **settings: Any) -> FastAPI:
    app = FastAPI()
    app.include_router(playground_router(guard, audit, **settings), prefix=prefix)
    return app


def guard_of(audit: AuditLog | None, engine: ScriptedEngine | None = None, **settings: Any) -> GuardReasonerGuard:
    observers = () if audit is None else (audit,)
    return GuardReasonerGuard(engine or ScriptedEngine(), observers=observers, remember=0, **settings)


@pytest.fixture
def audit(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.db")


@pytest.fixture
def client(audit: AuditLog, serve: Serve) -> Iterator[httpx.Client]:
    """Asks a server whose guard finds bombs."""
    with serve(application(guard_of(audit), audit)) as url, httpx.Client(base_url=url) as client:
        yield client


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events, each one line of data."""
    blocks = [block.split("\n") for block in text.removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def check(client: httpx.Client, request: str, response: str | None = None) -> dict[str, Any]:
    told = events(client.post("/playground/check", json={"request": request, "response": response}).text)
    assert told[-1][0] == "verdict"
    return told[-1][1]


# -- over HTTP ---------------------------------------------------------------------------------


class Inline(HTMLParser):
    """What a strict policy forbids, as it stands in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            outside = name in ("src", "href", "action") and not (value or "").startswith(("#", "data:image/svg+xml,"))
            if name.startswith("on") or name == "style" or outside:
                self.found.append(f"{tag} {name}={value}")


def test_the_page_stands_alone_under_a_strict_policy(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["style-src"])
    assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "'none'")
    parser = Inline()
    parser.feed(answer.text)
    assert not parser.found
    assert "innerHTML" not in answer.text and "eval(" not in answer.text and "@import" not in answer.text


def test_a_check_streams_its_steps_then_the_verdict(client: httpx.Client, audit: AuditLog) -> None:
    answer = client.post("/playground/check", json={"request": ATTACK})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    *steps, (name, last) = events(answer.text)
    assert [step for _, step in steps] == last["verdict"]["reasoning"] and len(steps) == 2
    assert (name, last["verdict"]["blocked"]) == ("verdict", True)
    assert audit.entry(last["id"]).request == ATTACK


def test_side_by_side_each_check_gets_its_own_id(client: httpx.Client, audit: AuditLog) -> None:
    found: dict[str, int] = {}
    threads = [
        threading.Thread(target=lambda text=f"text {n}": found.update({text: check(client, text)["id"]}))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {audit.entry(number).request: number for number in found.values()} == found and len(found) == 12


def test_what_cannot_be_judged_is_said(client: httpx.Client) -> None:
    answer = client.post("/playground/check", json={"request": " "})
    assert answer.status_code == 422 and "no text to judge" in answer.json()["detail"]
    assert client.post("/playground/check", json={"request": "a", "force": 1}).status_code == 422
    plain = {"Content-Type": "text/plain"}  # what a foreign page could send unasked
    assert client.post("/playground/check", content='{"request": "a"}', headers=plain).status_code == 422
    assert client.post("/playground/verdicts/1/review", content='{"thumb": "up"}', headers=plain).status_code == 422


def test_a_failure_is_told_from_a_verdict(audit: AuditLog, serve: Serve) -> None:
    broken = ScriptedEngine(error=EngineError("The engine is gone."))
    with serve(application(guard_of(audit, broken), audit)) as url, httpx.Client(base_url=url) as client:
        assert check(client, "hello")["verdict"]["outcome"] == "failure"
    raising = guard_of(audit, broken, on_failure="raise")
    with serve(application(raising, audit)) as url, httpx.Client(base_url=url) as client:
        told = events(client.post("/playground/check", json={"request": "hello"}).text)
        assert told == [("problem", {"message": "The engine is gone."})]


def test_a_log_that_cannot_be_written_costs_the_review_but_not_the_verdict(
    client: httpx.Client, audit: AuditLog
) -> None:
    audit.close()
    told = check(client, "a bomb")
    assert told["verdict"]["blocked"] and told["id"] is None


def test_who_goes_away_stops_the_model(audit: AuditLog, serve: Serve) -> None:
    engine = Halfway()
    with serve(application(guard_of(audit, engine), audit)) as url, httpx.Client(base_url=url) as client:
        with client.stream("POST", "/playground/check", json={"request": "a bomb"}) as answer:
            assert "The first step." in next(answer.iter_text())
            assert not engine.ended.is_set()
        assert engine.ended.wait(10)


def test_recent_verdicts_with_filters_page_by_page(client: httpx.Client) -> None:
    for request, response in (("one", None), ("a bomb", None), ("three", "sorry"), ("four", "a bomb")):
        check(client, request, response)

    def ids(**filters: Any) -> list[int]:
        return [one["id"] for one in client.post("/playground/verdicts", json=filters).json()["entries"]]

    assert ids() == [4, 3, 2, 1] and ids(limit=3) == [4, 3, 2] and ids(limit=3, before=2) == [1]
    assert ids(status="blocked") == [4, 2] and ids(found="completion") == [3] and ids(text="BOMB") == [4, 2]
    assert ids(review="open", status="passed") == [3, 1]
    for wrong in (
        {"limit": 0},
        {"limit": 1000},
        {"status": "odd"},
        {"before": 2**64},
        {"found": "x' OR 1"},
        {"text": "a" * 60_000},
    ):
        assert client.post("/playground/verdicts", json=wrong).status_code == 422
    assert client.post(f"/playground/verdicts/{2**64}/review", json={"thumb": "up"}).status_code == 422


def test_a_review_is_written_and_exported(client: httpx.Client, tmp_path: Path) -> None:
    check(client, "a bath bomb", "Mix soda and acid.")
    check(client, "hello")
    told = client.post(
        "/playground/verdicts/1/review", json={"labels": {"request": "unharmful", "response": "unharmful"}}
    )
    assert told.json()["entry"]["thumb"] == "down" and told.json()["counts"] == {"kept": 2, "reviewed": 1, "seeds": 1}
    wrong = client.post("/playground/verdicts/2/review", json={"labels": {"response": "harmful"}})
    assert wrong.status_code == 422 and "request alone" in wrong.json()["detail"]
    answer = client.get("/playground/export/corrections.jsonl")
    assert answer.headers["content-disposition"] == 'attachment; filename="corrections.jsonl"'
    (tmp_path / "rows.jsonl").write_bytes(answer.content)
    [row] = read_table(str(tmp_path / "rows.jsonl"))
    assert row.labels == {"request": "unharmful", "response": "unharmful"} and row.response == "Mix soda and acid."
    log = [json.loads(line) for line in client.get("/playground/export/log.jsonl").text.splitlines()]
    assert [(one["request"], one["blocked"]) for one in log] == [("a bath bomb", True), ("hello", False)]
    assert client.get("/playground/export/other.jsonl").status_code == 422


def test_without_a_log_the_page_only_judges(serve: Serve) -> None:
    guard = guard_of(None, policy=Policy(shadow=True))
    with serve(application(guard, None)) as url, httpx.Client(base_url=url) as client:
        assert client.get("/playground/about").json() == {
            "model": "scripted", "reasoning": "adaptive", "blocks": ["request", "response"], "shadow": True,
            "thresholds": {"request": 0.5, "completion": 0.5, "response": 0.5}, "audit": None,
        }  # fmt: skip
        assert check(client, "a bomb")["id"] is None
        for method, path in (("POST", "verdicts"), ("GET", "export/corrections.jsonl"), ("GET", "export/log.jsonl")):
            answer = client.request(method, f"/playground/{path}", json={})
            assert answer.status_code == 409 and "No audit log is kept" in answer.json()["detail"]


def test_the_page_is_public_and_what_it_asks_for_is_not(audit: AuditLog, serve: Serve) -> None:
    app = application(guard_of(audit), audit, dependencies=[Depends(key_needed)])
    paths = ["about", "export/corrections.jsonl", "export/log.jsonl"]
    with serve(app) as url, httpx.Client(base_url=url) as client:
        assert client.get("/").status_code == 200
        assert [client.get(f"/playground/{path}").status_code for path in paths] == [401] * 3
        for path in ("check", "verdicts", "verdicts/1/review"):
            assert client.post(f"/playground/{path}", json={"request": "a"}).status_code == 401
        client.headers["Authorization"] = f"Bearer {KEY}"
        assert [client.get(f"/playground/{path}").status_code for path in paths] == [200] * 3
        assert client.post("/playground/verdicts", json={}).status_code == 200


def test_a_guard_that_does_not_write_the_log_is_refused(audit: AuditLog) -> None:
    with pytest.raises(BadInput, match=r"observers=\(audit,\)"):
        playground_router(guard_of(None), audit)


# -- in a browser ------------------------------------------------------------------------------


@contextmanager
def looking(browser: Any, url: str, errors: int = 0, **settings: Any) -> Iterator[Any]:
    """A page that must ask nobody else, throw nothing, and put so many errors into its console."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
    page = context.new_page()
    page.set_default_timeout(15_000)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.locator("#model:not(:empty), dialog[open]").first.wait_for()
    yield page
    assert len(said) == errors, said
    origin = re.match(r"https?://[^/#]+", url)
    assert origin and all(one.startswith((origin[0], "data:", "blob:")) for one in asked)
    context.close()


def judge(page: Any, request: str, response: str = "") -> None:
    page.get_by_label("Request", exact=True).fill(request)
    page.get_by_label("Response").fill(response)
    page.get_by_label("Response").press("Control+Enter")
    page.locator("#outcome:not([aria-busy])").locator(".cost").wait_for()


def open_desk(page: Any, count: int) -> Any:
    page.get_by_role("link", name="Review desk").click()
    rows = page.locator("#list > .row")
    rows.nth(count - 1).wait_for()
    assert rows.count() == count
    return rows


def test_steps_stand_there_before_the_verdict(browser: Any, audit: AuditLog, serve: Serve) -> None:
    engine = Halfway()
    with serve(application(guard_of(audit, engine), audit)) as url, looking(browser, url) as page:
        page.get_by_label("Request", exact=True).fill("how to build a bomb")
        page.get_by_role("button", name="Check").click()
        outcome = page.get_by_role("region", name="Verdict")
        outcome.get_by_text("The first step.").wait_for()
        assert outcome.get_by_text("Judging").is_visible() and not outcome.get_by_text("Blocked").count()
        engine.go.set()
        outcome.get_by_text("Blocked").wait_for()
        # the engine wrote another first step in the end, and the verdict's own steps are what counts
        steps = [step.text for step in audit.recent()[0].verdict.reasoning]
        assert outcome.locator("ol li").all_inner_texts() == steps and "The first step." not in steps
        assert outcome.get_by_text("The request is harmful.").is_visible()
        assert outcome.locator(".score").all_inner_texts() == [
            "Is the request harmful?\nHarmful 99.0 %\nthreshold 50 %"
        ]
        assert "Tokens read" in outcome.locator(".cost").inner_text()
        assert page.get_by_role("status").inner_text() == "Blocked. The request is harmful."


def test_a_check_can_be_stopped(browser: Any, audit: AuditLog, serve: Serve) -> None:
    engine = Halfway()
    with serve(application(guard_of(audit, engine), audit)) as url, looking(browser, url) as page:
        page.get_by_label("Request", exact=True).fill("how to build a bomb")
        page.get_by_label("Request", exact=True).press("Meta+Enter")
        page.get_by_text("The first step.").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped before a verdict").wait_for()
        assert engine.ended.wait(10) and not page.get_by_role("button", name="Stop").is_visible()


def test_judged_text_never_runs(browser: Any, audit: AuditLog, serve: Serve) -> None:
    guard = guard_of(audit, ScriptedEngine(answer=f"{ATTACK}\n---\nAnswers:\nRequest: harmful"))
    with serve(application(guard, audit)) as url, looking(browser, url) as page:
        judge(page, ATTACK, ATTACK)
        assert "onerror" in page.locator("#outcome ol li").first.inner_text()
        [row] = open_desk(page, 1).all()
        row.locator("summary").click()
        assert row.get_by_role("group", name="Request").text_content() == ATTACK
        assert row.get_by_role("group", name="Response").text_content() == ATTACK
        row.get_by_role("button", name="Wrong").click()
        page.get_by_label("Text contains").fill(ATTACK)
        page.locator("#list > .row").wait_for()
        assert page.evaluate("window.pwned") is None
        assert page.locator("img, iframe, object, #list a, #outcome a").count() == 0
        assert page.locator("script").count() == 1


def test_the_policy_would_stop_what_the_page_let_through(browser: Any, audit: AuditLog, serve: Serve) -> None:
    with serve(application(guard_of(audit), audit)) as url, looking(browser, url, errors=3) as page:
        refused = "text => { try { document.body.innerHTML = text; return false } catch { return true } }"
        assert page.evaluate(refused, ATTACK)  # trusted types
        added = "() => { const one = document.createElement('script'); one.text = 'window.pwned = 1'; document.body.append(one) }"
        with pytest.raises(Exception, match="TrustedScript"):
            page.evaluate(added)
        page.evaluate("() => document.body.setAttribute('style', 'color: red')")  # a style that is none of the page's
        assert page.evaluate("window.pwned") is None


def test_a_correction_in_the_browser_comes_out_as_a_seed_row(
    browser: Any, audit: AuditLog, serve: Serve, tmp_path: Path
) -> None:
    with serve(application(guard_of(audit), audit)) as url, looking(browser, url) as page:
        judge(page, "how to make a bath bomb", "Mix soda and acid.")
        page.get_by_role("button", name="Wrong").click()
        page.get_by_role("button", name="Save correction").click()
        page.locator("form p", has_text="Change the one that is wrong").wait_for()
        page.get_by_role("group", name="Is the request harmful?").get_by_text("Unharmful").click()
        page.get_by_role("group", name="Does the answer refuse?").get_by_text("Not sure").click()
        page.get_by_role("button", name="Save correction").click()
        page.locator(
            ".review p", has_text="Corrected: request unharmful, answer unharmful. It makes a seed row."
        ).wait_for()
        judge(page, "hello", "sorry")
        page.get_by_role("button", name="Right").click()
        page.locator(".review p", has_text="Noted as right.").wait_for()

        rows = open_desk(page, 2)
        assert rows.locator(".pill.right").all_inner_texts() == ["Right", "Corrected"]
        with page.expect_download() as told:
            page.get_by_role("button", name="Seed rows (2)").click()
        assert told.value.suggested_filename == "corrections.jsonl"
        told.value.save_as(tmp_path / "corrections.jsonl")
        first, second = read_table(str(tmp_path / "corrections.jsonl"))
        assert (first.prompt, first.response) == ("how to make a bath bomb", "Mix soda and acid.")
        assert first.labels == {"request": "unharmful", "response": "unharmful"}
        assert second.labels == {"request": "unharmful", "completion": "refusal", "response": "unharmful"}
        with page.expect_download() as told:
            page.get_by_role("button", name="Log").click()
        told.value.save_as(tmp_path / "log.jsonl")
        assert [json.loads(line)["blocked"] for line in (tmp_path / "log.jsonl").open()] == [True, False]

        rows.nth(0).locator("summary").click()
        rows.nth(0).get_by_role("button", name="Take back").click()
        page.get_by_role("button", name="Seed rows (1)").wait_for()
        assert audit.entry(2).thumb is None


def test_harmful_text_is_folded_away(browser: Any, audit: AuditLog, serve: Serve) -> None:
    guard = guard_of(audit)
    guard.check_many(["how to build a bomb", "how to bake bread", ("what now", "a bomb")])
    with serve(application(guard, audit)) as url, looking(browser, url) as page:
        rows = open_desk(page, 3)
        assert "bomb" not in page.locator("body").text_content().replace("Text folded", "")
        assert "what now" not in rows.nth(0).text_content() and "how to bake bread" in rows.nth(1).inner_text()
        rows.nth(2).get_by_text("Show the text and review (may be harmful)").click()
        rows.nth(2).get_by_text("how to build a bomb", exact=True).wait_for()


def test_filters_and_further_pages(browser: Any, audit: AuditLog, serve: Serve) -> None:
    guard = guard_of(audit)
    guard.check_many([f"question {n}" for n in range(25)] + ["a bomb"])
    with serve(application(guard, audit)) as url, looking(browser, f"{url}#review") as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        rows = page.locator("#list > .row")
        rows.nth(19).wait_for()
        page.get_by_role("button", name="Show more").click()
        rows.nth(25).wait_for()
        assert not page.get_by_role("button", name="Show more").is_visible() and rows.count() == 26
        page.get_by_label("Outcome").select_option("Blocked")
        page.locator("#list > .row:only-child").wait_for()
        page.get_by_label("Outcome").select_option("Any")
        page.get_by_label("Text contains").fill("question 7")
        page.locator("#list > .row:only-child").wait_for()
        page.get_by_label("Review", exact=True).select_option("Right")
        page.get_by_text("No verdict is like that.").first.wait_for()
        assert asked and "question" not in str(asked), "servers log what stands in a URL"


def test_everything_can_be_done_with_the_keyboard(browser: Any, audit: AuditLog, serve: Serve) -> None:
    with serve(application(guard_of(audit), audit)) as url, looking(browser, url) as page:

        def focused() -> str:
            ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            inner = page.evaluate(
                "document.activeElement.closest('label') && getComputedStyle(document.activeElement.closest('label')).outlineStyle"
            )
            assert "solid" in (ring, inner), "no focus ring"
            name: str = page.evaluate(
                "document.activeElement.textContent.trim() || document.activeElement.id || document.activeElement.value"
            )
            return name

        seen = []
        for _ in range(6):
            page.keyboard.press("Tab")
            seen.append(focused())
        assert seen == ["Skip to the page", "Playground", "Review desk", "request", "response", "Check"]
        page.get_by_label("Request", exact=True).focus()
        page.keyboard.type("a bath bomb")
        page.keyboard.press("Control+Enter")
        page.get_by_role("button", name="Wrong").focus()
        page.keyboard.press("Enter")
        assert focused() == "harmful"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.locator(".review p", has_text="Corrected: request unharmful.").wait_for()
        assert focused() == "Wrong"
        assert page.get_by_role("button", name="Wrong").get_attribute("aria-pressed") == "true"


# Text whose contrast with what lies behind it is below that of WCAG 2 AA.
FAINT = """() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const read = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (one) => { for (; one; one = one.parentElement) { const c = read(getComputedStyle(one).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !one.closest(":disabled") && !one.classList.contains("unseen")
      && (one.matches("input:not([type=radio]), textarea, select") || [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())))
    .map((one) => { const [a, b] = [light(read(getComputedStyle(one).color)), light(behind(one))]; return [one.outerHTML.slice(0, 60), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; })
    .filter(([, ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_in_light_and_in_the_dark(
    browser: Any, audit: AuditLog, serve: Serve, scheme: str
) -> None:
    settings: dict[str, Any] = {
        "viewport": {"width": 360, "height": 740},
        "color_scheme": scheme,
        "reduced_motion": "reduce",
    }
    with serve(application(guard_of(audit), audit)) as url, looking(browser, url, **settings) as page:
        wide = "document.documentElement.scrollWidth"
        judge(page, "bomb" * 100, "a bomb, or <b>sorry</b>" + "x" * 300)
        page.get_by_role("button", name="Wrong").click()
        assert page.evaluate(wide) <= 360 and page.evaluate(FAINT) == []
        row = open_desk(page, 1)
        row.locator("summary").click()
        row.get_by_role("button", name="Right").wait_for()
        assert page.evaluate(wide) <= 360 and page.evaluate(FAINT) == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 19, 21)"
        assert dark is (scheme == "dark")


def test_the_page_gives_the_server_the_key_it_wants(browser: Any, tmp_path: Path, serve: Serve) -> None:
    settings = ServerSettings(api_keys=(SecretStr(KEY),), audit=tmp_path / "audit.db")
    with serve(create_app(settings, guard_of(None))) as url, looking(browser, url, errors=2) as page:
        dialog = page.get_by_role("dialog", name="This server wants an API key")
        dialog.get_by_label("API key").fill("wrong")
        dialog.get_by_role("button", name="Continue").click()
        dialog.get_by_text("That key was refused.").wait_for()
        dialog.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        page.locator("#model", has_text="scripted").wait_for()
        judge(page, "a bomb")
        page.reload()
        judge(page, "a bomb")  # the tab still has it
        open_desk(page, 2)
        assert page.evaluate("localStorage.length") == 0 and page.evaluate("document.cookie") == ""
        assert KEY not in page.content()


def test_what_the_server_refuses_is_told(browser: Any, serve: Serve) -> None:
    settings = ServerSettings(max_body=1000)
    with serve(create_app(settings, guard_of(None))) as url, looking(browser, url, errors=1) as page:
        page.get_by_label("Request", exact=True).fill("word " * 1000)
        page.get_by_role("button", name="Check").click()
        page.locator("#outcome", has_text="No verdict").wait_for()
        assert "Send less at once" in page.locator("#outcome").inner_text()


def test_without_a_log_the_desk_says_so(browser: Any, serve: Serve) -> None:
    with serve(application(guard_of(None), None)) as url, looking(browser, url) as page:
        judge(page, "a bomb")
        assert not page.get_by_text("Was this right?").count()
        page.get_by_role("link", name="Review desk").click()
        page.get_by_text("No audit log is kept").wait_for()
        assert not page.get_by_role("button", name="Log").is_visible()


def test_the_page_works_below_another_path(browser: Any, audit: AuditLog, serve: Serve) -> None:
    app = application(guard_of(audit), audit, prefix="/guard")
    with serve(app) as url, looking(browser, f"{url}/guard/") as page:
        judge(page, "a bomb")
        open_desk(page, 1)
