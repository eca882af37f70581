"""The checkpoint inside the package: small, in 16 bits, listed file by file, and readable by others' libraries."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from soragen.catalog import checkpoint_folder, find, measure_files
from soragen.models.text_encoder import PromptEncoder

PROMPTS = ["a red ball bouncing on green grass at sunset", "Ein Würfel 🎲, ​naïve", ""]


@pytest.fixture(scope="module")
def folder() -> Path:
    return checkpoint_folder(find("pocket"))


def test_every_file_is_listed_with_its_size_and_hash(folder: Path) -> None:
    assert measure_files(folder) == tuple(sorted(find("pocket").files, key=lambda file: file.path))


def test_it_is_at_most_64_megabytes_in_16_bits(folder: Path) -> None:
    assert find("pocket").num_bytes <= 64_000_000
    large = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if part.get_dtype() not in ("F16", "BF16"):
                    large += file.get_tensor(name).numel()
    assert large < 10_000


def test_transformers_loads_the_text_encoder_and_gives_the_same_numbers(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    published = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    ours = PromptEncoder(
        folder / "text_encoder",
        folder / "tokenizer" / "tokenizer.json",
        max_length=96,
        device=torch.device("cpu"),
        dtype=torch.float32,
        cache=None,
    )
    for prompt, context in zip(PROMPTS, ours.encode(PROMPTS), strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            expected = published(ids).last_hidden_state[0]
        assert context.embeddings.shape == expected.shape
        difference = (context.embeddings - expected).norm() / expected.norm()
        assert float(difference) < 1e-6
