"""Writes what was trained as the embedded checkpoint, in the folder layout of published ones, in 16 bits.

    python -m training.export RUN [FOLDER]

FOLDER is soragen/checkpoints/pocket unless named. Prints the `files` table for weights.toml.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from soragen.catalog import measure_files

# The normalisation keeps its full precision: it is a kilobyte, and every frame depends on it.
KEEP_FLOAT32 = ("latent_mean", "latent_scale", "latent_std", "patch_mean")
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
    "model_max_length": 96,
}  # fmt: skip
PARTS = [
    ("text", "text_encoder", "model.safetensors"),
    ("transformer", "transformer", "diffusion_pytorch_model.safetensors"),
    ("vae", "vae", "diffusion_pytorch_model.safetensors"),
    ("upscaler", "upscaler", "diffusion_pytorch_model.safetensors"),
    ("refiner", "refiner", "diffusion_pytorch_model.safetensors"),
]
"""A folder of the run, the component it becomes, and the name of its file there."""
OPTIONAL = {"upscaler": "PocketUpscaler", "refiner": "PocketRefiner"}
"""A checkpoint is whole without these."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("soragen/checkpoints/pocket"))
    options = parser.parse_args(arguments)
    for source, part, name in PARTS:
        if part in OPTIONAL and not (options.run / source).is_dir():
            continue
        target = options.folder / part
        target.mkdir(parents=True, exist_ok=True)
        tensors = load_file(options.run / source / "model.safetensors")
        stored = {
            key: tensor.float() if key in KEEP_FLOAT32 else tensor.to(torch.float16) for key, tensor in tensors.items()
        }
        save_file(stored, target / name, {"format": "pt"})
        shutil.copyfile(options.run / source / "config.json", target / "config.json")
    tokenizer = options.folder / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    shutil.copyfile(options.run / "text" / "tokenizer.json", tokenizer / "tokenizer.json")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
    index = {
        "_class_name": "PocketPipeline",
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["soragen", "PocketTransformer"],
        "vae": ["soragen", "PocketVae"],
    }
    index |= {part: ["soragen", name] for part, name in OPTIONAL.items() if (options.folder / part).is_dir()}
    (options.folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    print("[pocket.files]")
    for file in measure_files(options.folder):
        print(f'"{file.path}" = {{ size = {file.size}, sha256 = "{file.sha256}" }}')


if __name__ == "__main__":
    main()
