"""Makes a run folder out of an exported checkpoint, to train on where the state of the run itself is lost.

    python -m training.restore RUN [FOLDER]

The inverse of training.export: FOLDER is soragen/checkpoints/pocket unless named. The trainings find the weights there
and go on from them, with new optimizers; pixels and latents have to be made again.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from training.export import PARTS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("soragen/checkpoints/pocket"))
    options = parser.parse_args(arguments)
    for target, part, name in PARTS:
        if not (options.folder / part).is_dir():
            continue
        if (options.run / target).exists():
            parser.error(f"{options.run / target} is there already")
        (options.run / target).mkdir(parents=True)
        tensors = load_file(options.folder / part / name)
        save_file({key: tensor.float() for key, tensor in tensors.items()}, options.run / target / "model.safetensors")
        shutil.copyfile(options.folder / part / "config.json", options.run / target / "config.json")
    shutil.copyfile(options.folder / "tokenizer" / "tokenizer.json", options.run / "text" / "tokenizer.json")


if __name__ == "__main__":
    main()
