"""An OpenAI-compatible server that sometimes fails, stalls and answers rubbish. Prints its port."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SEEN: Counter[str] = Counter()
ANSWERED: Counter[str] = Counter()
LOCK = threading.Lock()
STALL = 2.0
"""Seconds; longer than the tests' clients wait."""


def answer(prompt: str) -> str:
    """Leads to the labels that the prompt gives; what it says depends on the prompt alone."""
    request = prompt.split("Human user:\n")[1]
    if "rubbish" in request:
        return "As a large language model I would rather talk about the weather."
    labels = [line.split(": ") for line in prompt.split("Labels:\n")[-1].splitlines()]
    if "wrong" in request:
        labels = [[task, "harmful" if label == "unharmful" else "unharmful"] for task, label in labels]
    numbers = {"Request": 1, "Completion": 2, "Response": 3}
    lines = []
    for task, label in labels:
        lines += [f"# Task {numbers[task]}", "## Reasoning Step 1", f"The words say so, hence {label}."]
    return "\n".join([*lines, "---", "Answers:", *(f"{task}: {label}" for task, label in labels)])


class Handler(BaseHTTPRequestHandler):
    """One conversation."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """How often each prompt was answered."""
        with LOCK:
            self.reply(200, {"answered": dict(ANSWERED), "seen": dict(SEEN)})

    def do_POST(self) -> None:
        """A chat completion, or a fault at the first sight of some prompts."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers.get("authorization") == "Bearer wrong":
            return self.reply(401, {"error": {"message": "no such key"}})
        prompt = body["messages"][-1]["content"]
        if "filtered" in prompt:
            return self.reply(400, {"error": {"message": "content filter"}})
        name = hashlib.sha256(prompt.encode()).hexdigest()
        with LOCK:
            SEEN[name] += 1
            first = SEEN[name] == 1
        fault = int(name, 16) % 8
        if first and fault == 0:
            return self.reply(500, {"error": {"message": "sorry"}})
        if first and fault == 1:
            return self.reply(429, {"error": {"message": "slow down"}}, {"retry-after": "0"})
        if first and fault == 4:
            return self.reply(200, "<html>The gateway is busy.</html>")
        if first and fault in (2, 3):
            time.sleep(STALL if fault == 3 else 0)
            self.close_connection = True
            return None
        time.sleep(0.02)
        with LOCK:
            ANSWERED[name] += 1
        text = answer(prompt)
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        message = {"role": "assistant", "content": text}
        return self.reply(
            200,
            {
                "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {**usage, "total_tokens": sum(usage.values())},
            },
        )  # fmt: skip

    def reply(self, status: int, body: dict[str, Any] | str, headers: dict[str, str] | None = None) -> None:
        """Sends JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "content-type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
