"""Does a vote of sampled reasoned answers beat one greedy answer, or the direct score? A table of docs/ablation.md.

`python docs/votes.py MODEL_DIRECTORY BENCHMARKS ROWS_A_BENCHMARK SAMPLES`, for a model that reasons first. Each row is
asked for its task's label: by the direct score, by a greedy reasoned answer, and by samples of it (temperature 0.7,
top-p 0.95), whose share of the positive label is a score as well. Texts are cut to their first 800 tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from guardreasoner_guard.training.benchmarks import ASKS, BenchmarkRow, read_benchmarks
from guardreasoner_guard.training.prediction import Prediction
from guardreasoner_guard.training.scoring import summary
from rich.console import Console
from rich.progress import track
from rich.table import Table

from guardreasoner_guard import UnreadableAnswer, answer
from guardreasoner_guard.engine import Question
from guardreasoner_guard.model_dir import open_model
from guardreasoner_guard.onnx_engine import OnnxEngine
from guardreasoner_guard.template import template
from guardreasoner_guard.verdict import LABELS

TOGETHER = 64
WAYS = ("direct score", "greedy answer", "vote", "score and vote")


def ask(directory: str, rows: list[BenchmarkRow], samples: int) -> Iterator[dict[str, Prediction]]:
    """What is said of each row, by way of asking; an answer that cannot be read votes for neither label."""
    model = open_model(directory)
    engine, wording = OnnxEngine(model, "cpu"), template(model.manifest.template)
    for start in track(range(0, len(rows), TOGETHER), "ask", console=Console(stderr=True)):
        batch = rows[start : start + TOGETHER]
        tasks = [ASKS[row.task] for row in batch]
        stages = [next(stage for stage in wording.stages if task in stage) for task in tasks]
        prompts = [
            wording.render(
                engine.split(row.prompt, 400 if row.response else 800, 0)[0],
                row.response and engine.split(row.response, 400, 0)[0],
            )
            for row in batch
        ]
        questions = [
            Question(prompt + wording.score_prefix(task, {}), LABELS[task])
            for prompt, task in zip(prompts, tasks, strict=True)
        ]
        scores = [scored.probabilities[0] for scored in engine.score(questions)]
        asked = [prompt + wording.reasoning_prefix(stage) for prompt, stage in zip(prompts, stages, strict=True)]
        cap = wording.longest_answer
        greedy = engine.generate(asked, max_tokens=cap)
        copies = [one for one in asked for _ in range(samples)]
        drawn = engine.generate(copies, max_tokens=cap, temperature=0.7, top_p=0.95, seed=start)
        for place, (row, task, stage) in enumerate(zip(batch, tasks, stages, strict=True)):
            words = LABELS[task]
            told: list[str | None] = []
            for text in (greedy[place], *drawn[place * samples : (place + 1) * samples]):
                try:
                    told.append(answer.read(asked[place].parts[-1] + text.text, stage).labels[task])
                except UnreadableAnswer:
                    told.append(None)
            votes = [label for label in told[1:] if label is not None]
            share = votes.count(words[0]) / len(votes) if votes else 0.5
            found = dict(
                zip(WAYS, (scores[place], float(told[0] == words[0]), share, (scores[place] + share) / 2), strict=True)
            )
            yield {
                way: Prediction.of(row, words[0 if score >= 0.5 else 1], score=score, unreadable=told[0] is None)
                for way, score in found.items()
            }


def main(directory: str, data: str, limit: int, samples: int) -> None:
    """Prints F1 by task: at even odds, and with one threshold a task fitted on one half and scored on the other."""
    rows = sorted(read_benchmarks(Path(data), limit), key=lambda row: len(row.prompt + (row.response or "")))
    found = list(ask(directory, rows, samples))
    table = Table("way", "prompt", "response", "refusal", "mean", "fitted: mean")
    for way in WAYS:
        scores = summary([one[way] for one in found])
        averages = scores["averages"]
        row = [averages["prompt"], averages["response"], averages["refusal"], averages["mean"]]
        table.add_row(way, *map(str, row), str(scores["fitted on one half, scored on the other"]["mean"]))
    unreadable = sum(one["greedy answer"].unreadable for one in found)
    console = Console()
    console.print(table)
    console.print(f"{len(found)} rows, {samples} samples each, {unreadable} greedy answers unreadable")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
