"""Where the files of a checkpoint come from: its own repository, and those that only a part of it comes from.

Most repositories have the published layout, and all that is needed is taken from its folders. Others hold files as
their authors store them, many models side by side: there a checkpoint names the one it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from soragen.checkpoint import LORAS, Checkpoint
from soragen.errors import InputError, WeightsError
from soragen.layout import ALSO, COMPONENTS, INDEX, is_confined, needed_files
from soragen.models.hub import RemoteFile

TOGETHER = {"text_encoder": ("text_encoder", "tokenizer")}
"""Folders that come with a part."""


@dataclass(frozen=True)
class Origin:
    """What is taken from one repository: folders of the published layout, and a file by its name ("" is none)."""

    source: str
    revision: str
    folders: tuple[str, ...]
    file: str = ""

    def wanted(self, files: Iterable[RemoteFile]) -> list[RemoteFile]:
        """Those of the repository's files. Raises InputError, and WeightsError where the named one is not there."""
        there = {file.path: file for file in files}
        paths = [path for path in needed_files(there) if path.partition("/")[0] in self.folders]
        if self.file:
            if self.file not in there:
                raise WeightsError(f"{self.source} has no file {self.file}", "its publisher may have renamed it")
            paths.append(self.file)
        return [there[path] for path in paths]


def origins(checkpoint: Checkpoint) -> tuple[Origin, ...]:
    """The checkpoint's own comes first. Raises InputError for a name of a file that leads out of the model's folder."""
    others = [part for part in checkpoint.parts if part.source or part.file]
    for file in (checkpoint.file, *(part.file for part in others)):
        if file and not (is_confined(file) and file.endswith(".safetensors")):
            raise InputError(f"{checkpoint.name} names the file {file!r}", "name one that ends in .safetensors")
    theirs = {folder for part in others for folder in TOGETHER.get(part.folder, (part.folder,))}
    layout = () if checkpoint.file else tuple({INDEX, *COMPONENTS, *ALSO} - theirs)
    own = Origin(checkpoint.source, checkpoint.revision, layout, checkpoint.file)
    return own, *(
        Origin(
            part.source or checkpoint.source,
            part.revision or (checkpoint.revision if part.source in ("", checkpoint.source) else ""),
            () if part.file else TOGETHER.get(part.folder, (part.folder,)),
            part.file,
        )
        for part in others
    )


def single_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The files that hold networks as their authors store them: what is in them has to be laid out."""
    named = (checkpoint.file, *(part.file for part in checkpoint.parts if part.folder not in LORAS))
    return tuple(file for file in named if file)
