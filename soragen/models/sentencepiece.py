"""tokenizer.json from spiece.model, for checkpoints that were published before tokenizer.json was.

transformers knows how T5's tokenizer lays special tokens over a SentencePiece model, so it does the conversion. It is
imported for this alone, once per model: the result is kept in soragen's cache, never in the checkpoint's folder.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from soragen.errors import WeightsError
from soragen.models.embedding_cache import cache_folder
from soragen.models.weights import sha256_file

FETCH = "fetch the tokenizer folder again, with tokenizer.json"


def tokenizer_file(file: Path) -> Path:
    """`file`, a tokenizer.json; where it is absent, one made from the spiece.model beside it. Raises WeightsError."""
    if file.is_file():
        return file
    spiece = file.with_name("spiece.model")
    if not spiece.is_file():
        raise WeightsError(f"{file} is missing, and so is spiece.model", FETCH)
    settings = file.with_name("tokenizer_config.json")
    key = sha256_file(spiece)[:32] + (sha256_file(settings)[:32] if settings.is_file() else "")
    top = cache_folder() or Path(tempfile.gettempdir()) / "soragen"
    made = top / "tokenizers" / f"{key}.json"
    if not made.is_file():
        text = convert(file.parent)
        try:
            made.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=made.parent, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.replace(temporary, made)
        except OSError as error:
            hint = "set SORAGEN_CACHE to another folder"
            raise WeightsError(f"cannot write {made}: {error.strerror}", hint) from error
    return made


def convert(folder: Path) -> str:
    """The content of tokenizer.json for the tokenizer in `folder`, as transformers makes it. Raises WeightsError."""
    from transformers import T5TokenizerFast  # type: ignore[attr-defined]

    try:
        tokenizer = T5TokenizerFast.from_pretrained(str(folder), local_files_only=True)
        return str(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # any of what a damaged file, or a package that is absent, makes it raise
        raise WeightsError(f"{folder / 'spiece.model'} cannot be converted: {error}", FETCH) from error
