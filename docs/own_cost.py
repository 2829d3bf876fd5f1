"""What the package itself takes of a processor for each check, whatever the model: the figures of scaling.md.

Run it with `python docs/own_cost.py`. Processor time is counted, not wall time, so that other work on the machine
matters little. The model is scripted, or a server on this machine that answers at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer
from guardreasoner_guard.integrations.bulk import Run, identity, moderate
from guardreasoner_guard.integrations.bulk_verdicts import as_line

from guardreasoner_guard import GuardReasonerGuard, ScriptedEngine
from guardreasoner_guard.remote_engine import RemoteEngine

SERVER = """
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
likely = {" harm": -3.0, " unharm": -0.1, " refus": -3.0, " compl": -0.2}
choice = {"text": "", "finish_reason": "stop", "logprobs": {"top_logprobs": [likely]}}
answer = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 1}}).encode()
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log_message = lambda *_: None
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if self.path == "/v1/completions" else 404)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def rows(path: Path, count: int, answered: bool) -> Path:
    """Writes requests of some 35 words, with or without answers as long."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {"request": f"row {number}" + " word" * 33}
            file.write(json.dumps({**row, "response": row["request"]} if answered else row) + "\n")
    return path


def told(what: str, count: int, start: float) -> None:
    """Says how many rows a second of processor time that was."""
    typer.echo(f"{what}: {count / (time.process_time() - start):,.0f}")


def main() -> None:
    """Measures, and prints rows a second of processor time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        guard = GuardReasonerGuard(ScriptedEngine(), reasoning="never")
        source = rows(folder / "many.jsonl", 20_000, answered=False)
        verdict = guard.check("Hello.")
        start = time.process_time()
        run = Run(source, folder / "kept.jsonl", None, "stop", identity(guard), guard.read)
        for batch in run.batches(64):
            run.keep([as_line(row.number, row.id, verdict) for row in batch])
        run.finish()
        told("read, kept and written, nothing judged", 20_000, start)
        server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
        try:
            port = server.stdout.readline().strip() if server.stdout else ""
            remote = GuardReasonerGuard(RemoteEngine(f"http://127.0.0.1:{port}"), reasoning="never")
            for answered, what in ((False, "requests"), (True, "exchanges")):
                few = rows(folder / f"{what}.jsonl", 3_000, answered)
                for judging, where in ((guard, "by a model in the process"), (remote, "by a server")):
                    start = time.process_time()
                    moderate(judging, few, folder / f"{what} {where}.jsonl", at_once=4)
                    told(f"{what} judged {where} that takes no time", 3_000, start)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
