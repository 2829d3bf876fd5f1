"""What the README and the documents show is what happens."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    (page, block, shown)
    for page in PAGES
    for block, shown in re.findall(
        r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", page.read_text(encoding="utf-8"), re.DOTALL
    )
]
NAMES = [f"{page.stem}-{number}" for number, (page, *_) in enumerate(BLOCKS)]


@pytest.mark.parametrize(("page", "block", "shown"), BLOCKS, ids=NAMES)
def test_every_block_of_python_runs_and_prints_what_is_shown(
    page: Path, block: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # from a file, as a reader would: decorators look their function's source up
    (tmp_path / "shown.py").write_text(block, encoding="utf-8")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block, str(tmp_path / "shown.py"), "exec"), {"__name__": "__main__"})
    lines = [line for line in said.getvalue().splitlines() if not line.startswith("INFO: ")]  # of a server
    assert lines, "an example shows something"
    if shown and page != PAGES[0]:
        assert lines == shown.splitlines()


def test_the_first_block_prints_what_is_shown() -> None:
    shown = README.split("```text\n")[1].split("```")[0].splitlines()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(BLOCKS[0][1], {"__name__": "__main__"})
    lines = said.getvalue().splitlines()
    assert lines[0] == shown[0]
    # the words of the reasons may differ between processors, whose arithmetic rounds otherwise
    assert lines[1].split(".")[0] == shown[1].split(".")[0] == "Blocked: the request is harmful"
