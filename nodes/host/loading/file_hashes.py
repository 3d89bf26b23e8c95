"""SHA-256 of model files, computed beside the runs and kept by path, size and time of change."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from pathlib import Path

_CHUNK = 1 << 20  # bytes


class FileHashes:
    """Hashes by file. They are also kept in a JSON file, so that each is computed once."""

    def __init__(self, kept_in: Path) -> None:
        self.kept_in = kept_in
        self.lock = threading.Lock()
        self.running: dict[str, threading.Thread] = {}
        self.known = self._read()

    def of(self, path: Path) -> str | None:
        """The hash in hex; None while it is not known yet: then it is being computed."""
        path = path.resolve()
        key, state = str(path), _state(path)
        with self.lock:
            kept = self.known.get(key)
            if kept and kept[:2] == state:
                return kept[2]
            if key not in self.running:
                self.running[key] = threading.Thread(target=self._compute, args=(path,), daemon=True)
                self.running[key].start()
        return None

    def _compute(self, path: Path) -> None:
        try:
            before, digest = _state(path), hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
            with self.lock:
                if _state(path) == before:
                    self.known[str(path)] = [*before, digest.hexdigest()]
                    self._write()
        except OSError as error:
            logging.warning("Z-Image: no hash of %s: %s", path.name, error)
        finally:
            with self.lock:
                del self.running[str(path)]

    def _read(self) -> dict[str, list]:
        try:
            found = json.loads(self.kept_in.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {key: kept for key, kept in entries if _is_kept(kept)}

    def _write(self) -> None:
        self.kept_in.parent.mkdir(parents=True, exist_ok=True)
        self.kept_in.write_text(json.dumps(self.known, indent=1), encoding="utf-8")


def _is_kept(kept: object) -> bool:
    return isinstance(kept, list) and len(kept) == 3 and isinstance(kept[2], str)


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
