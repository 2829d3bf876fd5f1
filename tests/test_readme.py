"""What the README shows is what happens."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_of_python_runs(number: int, tmp_path: Path) -> None:
    # from a file, as a reader would: decorators look their function's source up
    (tmp_path / "shown.py").write_text(BLOCKS[number], encoding="utf-8")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(BLOCKS[number], str(tmp_path / "shown.py"), "exec"), {"__name__": "__main__"})
    assert said.getvalue().strip()


def test_the_first_block_prints_what_is_shown() -> None:
    shown = README.split("```text\n")[1].split("```")[0].splitlines()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(BLOCKS[0], {"__name__": "__main__"})
    lines = said.getvalue().splitlines()
    assert lines[0] == shown[0]
    # the words of the reasons may differ between processors, whose arithmetic rounds otherwise
    assert lines[1].split(".")[0] == shown[1].split(".")[0] == "Blocked: the request is harmful"
