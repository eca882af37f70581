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

NO_PICKLES = "pickles (.bin, .pth) can run code and are not read"
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
NETWORKS = ("transformer", "transformer_2", "vae", "text_encoder", "image_encoder", "latent_upsampler")
"""Folders with weights."""
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
        """Those of the repository's files. Raises InputError, and WeightsError where the named one is not there, or
        the weights of a folder only as pickles.
        """
        there = {file.path: file for file in files}
        refuse_pickles(self.source, (path for path in there if path.partition("/")[0] in self.folders))
        paths = [path for path in needed_files(there) if path.partition("/")[0] in self.folders]
        if self.file:
            if self.file not in there:
                raise WeightsError(f"{self.source} has no file {self.file}", "its publisher may have renamed it")
            paths.append(self.file)
        return [there[path] for path in paths]


def refuse_pickles(where: object, paths: Iterable[str]) -> None:
    """Raises WeightsError for a component with weights that are pickles alone.

    where: the repository or folder that holds `paths`, for the error.
    """
    inside: dict[str, list[str]] = {}
    for path in sorted(paths):
        inside.setdefault(path.rpartition("/")[0], []).append(path)
    for folder in NETWORKS:
        pickles = [path for path in inside.get(folder, ()) if path.endswith(PICKLES)]
        if pickles and not any(path.endswith(".safetensors") for path in inside[folder]):
            raise WeightsError(f"{where} holds the weights of {folder} only as {pickles[0]}", NO_PICKLES)


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
