"""What a batch has done so far, beside its list: lines of JSON that are only ever added to.

A process that is killed while it writes leaves half a line at most, which is passed over. Records, by "event":
begin, asked (key, line, output, and request, or of a storyboard the seed), denoised (key, latents), done (key, output),
failed (line, error), end.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soragen.errors import InputError, OutputError
from soragen.request import Request

SUFFIX = ".journal"


@dataclass(frozen=True)
class Known:
    """What is known of a line that was asked before. latents: once denoised. done: the file, once made.

    request: None of a storyboard; then seed is that of its first shot.
    """

    request: Request | None
    output: Path
    seed: int | None = None
    latents: Path | None = None
    done: Path | None = None


class Journal:
    """known: by key, since the last time the list was begun. open: whether that run did not come to a good end."""

    def __init__(self, source: Path) -> None:
        self.path = source.with_name(source.name + SUFFIX)
        self.known: dict[str, Known] = {}
        self.open = False
        for record in self._records():
            self._take(record)

    def write(self, event: str, **values: Any) -> None:
        """Adds one record, on the disk when this returns. Raises OutputError."""
        record = {"event": event, **values}
        try:
            with self.path.open("ab+") as file:
                file.seek(0, os.SEEK_END)
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # half a line of a process that was killed
                        file.write(b"\n")
                file.write(json.dumps(record).encode("ascii") + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}", "free some space there") from error
        self._take(record)

    def _records(self) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}", "move it away") from error
        records = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
        return records

    def _take(self, record: dict[str, Any]) -> None:
        try:
            match record["event"]:
                case "begin":
                    self.known, self.open = {}, True
                case "asked":
                    request = Request.from_dict(record["request"]) if "request" in record else None
                    seed = int(record["seed"]) if request is None else None
                    self.known[record["key"]] = Known(request, Path(record["output"]), seed)
                    self.open = True
                case "denoised":
                    key = record["key"]
                    self.known[key] = replace(self.known[key], latents=Path(record["latents"]))
                case "done":
                    key = record["key"]
                    self.known[key] = replace(self.known[key], done=Path(record["output"]))
                case "end":
                    self.open = False
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.path} is of another version", "move it away to begin anew") from error
