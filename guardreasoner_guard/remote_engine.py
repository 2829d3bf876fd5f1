"""Runs a model that an OpenAI-compatible server holds (vLLM and friends): text in, log-probabilities and text out.

It knows nothing of guarding, and no text it carries appears in an error or a log.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from .engine import Heard, Question, Scored, Written
from .errors import BadInput, EngineError, MissingExtra
from .forked import renew_in_children
from .retry import post
from .template import Prompt

if TYPE_CHECKING:
    import httpx

_BACKOFF = 0.5
"""Seconds before the first further try, at most; each wait after it may be twice as long."""
_POLL = 0.05
"""Seconds between two looks at whether the caller has cancelled."""
_LOGPROBS = 20
"""Most that vLLM hands out unless it is told otherwise."""
_BYTES_A_TOKEN = 3
"""Where the server does not count: English has some 4.5, and other scripts are counted dearer, as they are."""
_MOST_CHARACTERS_A_TOKEN = 8
"""No window is searched for beyond this many, so that a long text is not sent whole again and again."""
_ADVICE = {
    400: "Most often the prompt is longer than the context the server was started with, or it gives no 20 logprobs; "
    "its log says which.",
    401: "Pass the server's key as api_key.",
    403: "Pass a key as api_key that may use this model.",
    404: "Check the URL, and that the model is called so there (GET /v1/models lists the names).",
}


def read_url(url: str) -> tuple[str, tuple[str, str] | None]:
    """A server's URL without `/v1` and without what is secret in it, and the user and password that it held.

    Raises:
        BadInput: It is none.
    """
    import httpx

    try:
        server = httpx.URL(url)
    except httpx.InvalidURL:
        server = httpx.URL("")
    if server.scheme not in ("http", "https") or not server.host:
        raise BadInput("That is no server's URL. Name one like http://localhost:8000.")
    told = str(server.copy_with(userinfo=b"", query=None, fragment=None)).rstrip("/").removesuffix("/v1")
    return told, (server.username, server.password) if server.userinfo else None


def bearer(key: str | None) -> dict[str, str]:
    """The header that bears a key, without the line's end that files and shells leave at it; none without a key.

    Raises:
        BadInput: No header can hold it. Left to the client, its error would quote it.
    """
    key = (key or "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise BadInput("That API key holds a blank, or a character beyond ASCII. Pass it as the server gave it.")
    return {"Authorization": f"Bearer {key}"} if key else {}


class RemoteEngine:
    """One model behind `/v1/completions`. Safe to call from several threads, which share its connections.

    A prompt is sent as one text: the server puts a beginning token before it where its tokeniser does.

    Args:
        url: The server, with or without `/v1`: `http://localhost:8000`.
        model: What the server calls the model; empty leaves it to a server that has only one.
        api_key: Sent as a bearer token.
        timeout: Seconds to wait for a connection, and for an answer.
        concurrency: Requests under way at once, over all calls.
        retries: Further tries after a lost connection, a timeout, 429, 5xx and the like; when, `Retry-After` says.

    Raises:
        BadInput: The URL is none, or no header can hold the key.
        MissingExtra: httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        concurrency: int = 8,
        retries: int = 3,
    ) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingExtra("httpx", "remote") from None
        self._where, auth = read_url(url)
        self.name = f"{model or 'model'} at {self._where}"
        self.concurrency = concurrency
        self._model = {"model": model} if model else {}
        self._timeout = timeout
        self._retries = retries
        self._connect = partial(httpx.Client, timeout=timeout, headers=bearer(api_key), auth=auth)
        self._counts = True
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """With connections and threads of its own."""
        self._client = self._connect()
        self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="remote-engine")

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        """Probabilities of the words among the 20 likeliest next tokens; see `Engine.score`.

        A token counts for the one word that it begins; a word with no such token has probability 0.
        """
        settings = {"max_tokens": 1, "temperature": 0.0, "logprobs": _LOGPROBS}
        bodies = [{"prompt": _encodable(str(question.prompt)), **settings} for question in questions]
        answers = self._complete(bodies, cancel)
        return [self._scored(question, answer) for question, answer in zip(questions, answers, strict=True)]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        cancel: threading.Event | None = None,
        heard: Heard | None = None,
    ) -> list[Written]:
        """Continues the prompts, a request each, told nothing of before its end; the server batches them.

        See `Engine.generate`.
        """
        settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
        bodies = [
            {"prompt": _encodable(str(prompt)), **settings, "seed": seed + index}
            for index, prompt in enumerate(prompts)
        ]
        return [self._written(answer) for answer in self._complete(bodies, cancel)]

    def split(self, text: str, size: int, overlap: int) -> list[str]:
        """Windows over the text; every character is in at least one, and neighbours share about `overlap` tokens.

        Tokens are counted by the server where it has vLLM's `POST /tokenize`. Elsewhere three bytes of UTF-8
        count as a token, more tokens than most texts have, so that windows come out rather too small.
        """
        if self._count(text) <= size:
            return [text]
        windows: list[str] = []
        start = end = 0
        while end < len(text):
            end = self._reach(text, start, size)
            windows.append(text[start:end])
            shared = math.ceil((end - start) * overlap / size)
            start = max(end - shared, start + 1)
        return windows

    def _reach(self, text: str, start: int, size: int) -> int:
        """The furthest end at which the window from `start` still has at most `size` tokens."""
        fits, beyond = start + 1, min(len(text), start + size * _MOST_CHARACTERS_A_TOKEN) + 1
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            if self._count(text[start:middle]) <= size:
                fits = middle
            else:
                beyond = middle
        return fits

    def _count(self, text: str) -> int:
        if self._counts and text:
            body = {**self._model, "prompt": _encodable(text), "add_special_tokens": False}
            answer = self._post("/tokenize", body, threading.Event())
            if answer.status_code not in (404, 405):
                with self._reading():
                    tokens = len(self._json(answer)["tokens"])
                # a llama.cpp server wants the text under another name and finds no tokens without it
                if tokens:
                    return tokens
            self._counts = False
        return math.ceil(len(_encodable(text).encode()) / _BYTES_A_TOKEN)

    def _scored(self, question: Question, answer: dict[str, Any]) -> Scored:
        odds = dict.fromkeys(question.words, 0.0)
        with self._reading():
            tokens = int(answer["usage"]["prompt_tokens"])
            for token, logprob in _likeliest(answer["choices"][0]["logprobs"]):
                begun = [word for word in odds if token.strip() and word.startswith(token.strip())]
                if len(begun) == 1:
                    odds[begun[0]] += math.exp(logprob)
        total = sum(odds.values())
        if not 0 < total < math.inf:
            raise EngineError(
                f"None of {', '.join(question.words)} is among the {_LOGPROBS} likeliest next tokens of {self.name}. "
                "Check that the server runs a guard model, and the one this template belongs to."
            )
        return Scored(tuple(value / total for value in odds.values()), tokens)

    def _written(self, answer: dict[str, Any]) -> Written:
        with self._reading():
            choice, tokens = answer["choices"][0], int(answer["usage"]["completion_tokens"])
            text, reason = choice["text"], choice["finish_reason"]
            if not isinstance(text, str) or not isinstance(reason, str):
                raise TypeError
        return Written(text, tokens, reason == "stop")

    def _complete(self, bodies: Sequence[dict[str, Any]], cancel: threading.Event | None) -> list[dict[str, Any]]:
        """Answers in the order of the requests, which run side by side; the first failure ends them all."""
        stop = threading.Event()

        def complete(body: dict[str, Any]) -> dict[str, Any]:
            return self._json(self._post("/v1/completions", {**self._model, **body}, stop))

        _look(cancel)
        futures = [self._pool.submit(complete, body) for body in bodies]
        try:
            waiting = set(futures)
            while waiting:
                pause = None if cancel is None else _POLL
                done, waiting = wait(waiting, timeout=pause, return_when=FIRST_EXCEPTION)
                _look(cancel)
                for future in done:
                    future.result()
            return [future.result() for future in futures]
        finally:
            stop.set()  # what is under way is not tried again
            for future in futures:
                future.cancel()

    def _post(self, path: str, body: dict[str, Any], stop: threading.Event) -> httpx.Response:
        """Asks until there is an answer that another try would not change."""
        import httpx

        def pause(seconds: float) -> None:
            stop.wait(seconds)
            _look(stop)

        _look(stop)
        tries = self._retries + 1
        try:
            return post(
                self._client, self._where + path, body, tries=tries, first=_BACKOFF, longest=self._timeout, wait=pause
            )
        except httpx.HTTPStatusError as error:
            problem = f"status {error.response.status_code}"
        except httpx.RequestError as error:
            problem = type(error).__name__
        raise EngineError(
            f"The server at {self._where} gave no answer in {tries} tries; the last ended with {problem}. "
            "Check that it runs and can be reached, or raise timeout or lower concurrency where it is overloaded."
        )

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.status_code != 200:
            # what the server says of it may quote the prompt
            advice = _ADVICE.get(answer.status_code, "The server's log says why.")
            raise EngineError(f"The server at {self._where} refused with status {answer.status_code}. {advice}")
        with self._reading():
            found: dict[str, Any] = answer.json()
            return found

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Whatever an answer lacks or has in the wrong place leaves as one error."""
        try:
            yield
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError):
            raise EngineError(
                f"The server at {self._where} did not answer as /v1/completions does. "
                "Check that the URL is an OpenAI-compatible server's, not another one's or a proxy's."
            ) from None


def _likeliest(logprobs: dict[str, Any]) -> list[tuple[str, float]]:
    """The likeliest next tokens and their log-probabilities; llama.cpp lists them as chat answers do."""
    if "content" in logprobs:
        return [(one["token"], float(one["logprob"])) for one in logprobs["content"][0]["top_logprobs"]]
    return [(token, float(logprob)) for token, logprob in logprobs["top_logprobs"][0].items()]


def _look(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise EngineError("The call was cancelled.")


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON cannot carry; its length stays."""
    return text.encode("utf-8", "replace").decode("utf-8")
