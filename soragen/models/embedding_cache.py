"""Text embeddings on disk, so that a prompt seen before loads no text encoder.

One file per prompt: <cache>/embeddings/<encoder hash>/<key>.safetensors, written under a temporary name and renamed.
The cache is never needed: an entry that is damaged is written again, a folder that cannot be written is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from soragen.errors import WeightsError
from soragen.models.weights import is_finite, sha256_file, weight_files

BOUND = 512 * 2**20  # bytes kept on disk; one prompt of a UMT5-XXL model takes 4 MiB
HASHED_WHOLE = 256 * 2**20  # bytes up to which a weight file is hashed in full: at most about 0.2 s
SAMPLES, SAMPLE_SIZE = 64, 64 * 2**10  # of a larger file


def cache_folder() -> Path | None:
    """Where soragen keeps what it can make again: $SORAGEN_CACHE or the system's place. None where there is no home."""
    if named := os.environ.get("SORAGEN_CACHE"):
        return Path(named)
    try:
        if sys.platform == "win32":
            top = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
        elif sys.platform == "darwin":
            top = Path.home() / "Library/Caches"
        else:
            top = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return top / "soragen"


def encoder_hash(folder: Path, tokenizer: Path) -> str:
    """What identifies an encoder: 32 hexadecimal digits of config.json, tokenizer.json and the weights.

    A weight file up to 256 MiB counts with its whole content. Of a larger one, reading all would take longer than
    the cache saves, so its size, its time of change, its first MiB and 64 samples spread over it count: another dtype,
    another training run, a truncation or a replacement changes them all. Raises WeightsError.
    """
    parts = [sha256_file(folder / "config.json"), sha256_file(tokenizer)]
    for path in weight_files(folder):
        status = path.stat()
        if status.st_size <= HASHED_WHOLE:
            parts.append(sha256_file(path))
            continue
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
        try:
            with path.open("rb") as file:
                digest.update(file.read(2**20))  # the header: names, types, shapes
                for sample in range(SAMPLES):
                    file.seek((status.st_size - SAMPLE_SIZE) * sample // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE_SIZE))
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror}", "fetch it again") from error
        parts.append(digest.hexdigest())
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


class EmbeddingCache:
    """Embeddings [L, D] with their mask [L] by a key of plain values, for one encoder."""

    def __init__(self, top: Path | None, encoder: str) -> None:
        self.top = top / "embeddings" if top else None
        self.encoder = encoder

    def _file(self, key: list[str | int]) -> Path | None:
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return self.top / self.encoder / f"{digest}.safetensors" if self.top else None

    def read(self, key: list[str | int], dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """What was written under this key, on the CPU, or None. An entry that is not sound counts as none."""
        path = self._file(key)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                embeddings, mask = file.get_tensor("embeddings").clone(), file.get_tensor("mask").clone()
                written = (file.metadata() or {}).get("checksum")
        except (SafetensorError, OSError):
            return None
        if written != _checksum(embeddings, mask) or embeddings.dtype != dtype or not is_finite(embeddings):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used just now: the oldest go first
        return embeddings, mask

    def write(self, key: list[str | int], embeddings: Tensor, mask: Tensor) -> None:
        """Stores an entry, then drops the oldest ones past the bound. Does nothing where the disk cannot be written."""
        path = self._file(key)
        if path is None:
            return
        embeddings, mask = embeddings.cpu().contiguous(), mask.cpu().contiguous()
        content = save({"embeddings": embeddings, "mask": mask}, {"checksum": _checksum(embeddings, mask)})
        temporary: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
            temporary = None
            self._trim()
        except OSError:
            pass
        finally:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def _trim(self) -> None:
        assert self.top is not None
        entries = []
        for path in self.top.glob("*/*"):
            with contextlib.suppress(OSError):  # another run may have dropped it
                entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        kept = 0
        for _, size, path in sorted(entries, reverse=True):
            kept += size
            if kept > BOUND:
                with contextlib.suppress(OSError):
                    path.unlink()


def _checksum(embeddings: Tensor, mask: Tensor) -> str:
    shape = f"{tuple(embeddings.shape)} {tuple(mask.shape)} {embeddings.dtype}"
    digest = hashlib.sha256(shape.encode())
    for tensor in (embeddings, mask):
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
