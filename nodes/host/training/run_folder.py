"""The folder of a run, below the host's output folder, and where its LoRA goes when it is finished."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import folder_paths

from ....zimage_core.weights.file_writers import new_file

RUNS = "zimage_training"
PLAIN = re.compile(r"\w(?:[\w .+-]{0,62}[\w+-])?")  # letters of any language, digits, a few marks between
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # by Windows
MOST_BYTES = 200  # disks take 255 with the ending and a mark of what is being written
RESULT = "result.json"


class RunError(ValueError):
    """A run that cannot be begun or go on; the message says what to do."""


class RunFolder:
    """output/zimage_training/NAME. Raises RunError for what is no plain name, and for a link to elsewhere."""

    def __init__(self, name: str) -> None:
        if not PLAIN.fullmatch(name) or RESERVED.fullmatch(name) or len(name.encode()) > MOST_BYTES:
            raise RunError(
                f"the name {name[:80]!r} is no plain file name: use up to 64 letters, digits, spaces and "
                "- _ . + between them, without folders."
            )
        self.name = name
        self.path = Path(folder_paths.get_output_directory()) / RUNS / name
        whole = Path(folder_paths.get_output_directory()).resolve() / RUNS / name
        inside = self.path.iterdir() if self.path.is_dir() else ()
        for path in (self.path, *inside):
            if path.resolve() != whole / path.relative_to(self.path):
                raise RunError(f"{path} is a link to {path.resolve()}: remove it, or choose another name.")

    @property
    def lora(self) -> Path:
        return self.path / f"{self.name}.safetensors"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def result(self, facts: dict[str, Any]) -> dict[str, Any] | None:
        """What a run of these facts said when it was finished, where its LoRA is still there."""
        found = self._last()
        same = found.get("facts") == json.loads(json.dumps(facts))
        return found if same and self.lora.is_file() and sha256(self.lora) == found.get("sha256") else None

    def finish(self, facts: dict[str, Any], said: list[str]) -> None:
        """Note that the run of these facts has made its LoRA."""
        made = [*self._last().get("made", []), sha256(self.lora)]
        result = {"facts": facts, "said": said, "sha256": made[-1], "made": list(dict.fromkeys(made))}
        partial = self.path / f"{RESULT}.part"
        partial.write_text(json.dumps(result, indent=1, ensure_ascii=False), "utf-8")
        partial.replace(self.path / RESULT)

    def _last(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / RESULT).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def saved(self) -> Path:
        """Where it goes when it is to be kept."""
        return Path(folder_paths.get_folder_paths("loras")[0]) / f"{self.name}.safetensors"

    def check_saved(self) -> None:
        """Raises RunError where a file is there that this run did not make."""
        place = self.saved
        if not place.exists() and not place.is_symlink():
            return
        if not place.is_file() or place.is_symlink() or sha256(place) not in self._last().get("made", []):
            raise RunError(
                f"{place} exists already, and this run did not make it: choose another name, or move that "
                "file."
            )

    def save(self) -> None:
        """Copy the LoRA to where LoRA loaders find it."""
        self.check_saved()
        if self.saved.is_file() and sha256(self.saved) == sha256(self.lora):
            return
        self.saved.parent.mkdir(parents=True, exist_ok=True)
        self.saved.unlink(missing_ok=True)
        with new_file(self.saved) as partial:
            shutil.copyfile(self.lora, partial)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()  # of a LoRA, some hundred megabytes at most
