"""The notes of the templates, from Markdown files: one a graph and language.

A paragraph that begins with [nano] or [full] is only in that variant, one with [demo] only in the nano
variant of a graph that has both. Every note ends with the paragraphs of ENDS: the files with links, or what
the demo is.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

TEXTS = Path(__file__).parent / "notes"
# By language, in the order of the notes on the canvas.
WORDS = json.loads((TEXTS / "words.json").read_text(encoding="utf-8"))
ENDS = "ends"
MARK = re.compile(r"\[(nano|full|demo)\] ?")


def note_text(name: str, language: str, marks: set[str], files: list[dict]) -> str:
    """The note of one workflow; marks: those whose paragraphs it has."""
    paragraphs = []
    for file in (name, ENDS):
        text = (TEXTS / f"{file}.{language}.md").read_text(encoding="utf-8").strip()
        for paragraph in text.split("\n\n"):
            mark = MARK.match(paragraph)
            if not mark or mark[1] in marks:
                paragraphs.append(MARK.sub("", paragraph, count=1) if mark else paragraph)
    lines = "\n".join(WORDS[language]["file"].format(**file) for file in files)
    return "\n\n".join(paragraphs).format(files=lines, name=name)
