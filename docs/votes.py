"""Does a vote of sampled reasoned answers beat one greedy answer, or the direct score?

python docs/votes.py MODEL_DIRECTORY BENCHMARKS ROWS_A_BENCHMARK SAMPLES OUT.jsonl

For a model that reasons first. Each line of OUT: the row's benchmark, task and label, its direct score, the label its
greedy answer ends with (null: unreadable) and those of its samples. Texts beyond the first 800 tokens are cut.
"""

import json
import sys
from pathlib import Path

from guardreasoner_guard.training.benchmarks import ASKS, read_benchmarks

from guardreasoner_guard import UnreadableAnswer, answer
from guardreasoner_guard.engine import Question
from guardreasoner_guard.model_dir import open_model
from guardreasoner_guard.onnx_engine import OnnxEngine
from guardreasoner_guard.template import template
from guardreasoner_guard.verdict import LABELS

TOGETHER = 64


def main(directory: str, data: str, limit: int, samples: int, out: Path) -> None:
    """Asks about the rows, those of like length together, and writes a line for each."""
    model = open_model(directory)
    engine, wording = OnnxEngine(model, "cpu"), template(model.manifest.template)
    rows = sorted(read_benchmarks(Path(data), limit), key=lambda row: len(row.prompt + (row.response or "")))

    def label(text, task, stage):
        try:
            return answer.read(wording.reasoning_prefix(stage) + text, stage).labels.get(task)
        except UnreadableAnswer:
            return None

    with out.open("w") as file:
        for start in range(0, len(rows), TOGETHER):
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
            scores = engine.score(
                [
                    Question(prompt + wording.score_prefix(task, {}), LABELS[task])
                    for prompt, task in zip(prompts, tasks, strict=True)
                ]
            )
            asked = [prompt + wording.reasoning_prefix(stage) for prompt, stage in zip(prompts, stages, strict=True)]
            greedy = engine.generate(asked, max_tokens=wording.longest_answer)
            drawn = engine.generate(
                [one for one in asked for _ in range(samples)],
                max_tokens=wording.longest_answer, temperature=0.7, top_p=0.95, seed=start,
            )  # fmt: skip
            for place, (row, task, stage) in enumerate(zip(batch, tasks, stages, strict=True)):
                texts = drawn[place * samples : (place + 1) * samples]
                line = {
                    "id": row.id, "benchmark": row.benchmark, "task": row.task, "label": row.label,
                    "score": scores[place].probabilities[0], "greedy": label(greedy[place].text, task, stage),
                    "votes": [label(text.text, task, stage) for text in texts],
                    "tokens": sum(text.tokens for text in texts),
                }  # fmt: skip
                file.write(json.dumps(line) + "\n")
            file.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
