"""Writes docs/models/NAME.md, a page for each checkpoint, and their list in docs/models.md, from weights.toml and the
published configs.

python docs/write_models.py

Memory is what `soragen generate --dry-run` counts for the networks, of configs alone: nothing is downloaded.
"""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import safe_open

from soragen.catalog import catalog, checkpoint_folder, packaged_catalog
from soragen.checkpoint import EMBEDDED, LORAS, Checkpoint
from soragen.diffusion.grid import lay_grid
from soragen.families import family_of
from soragen.models.device import DTYPES
from soragen.models.family import Work
from soragen.models.weights import weight_files
from soragen.pipeline.memory import READ_DTYPE
from soragen.size import VideoSize, format_fps

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from published_configs import PUBLISHED, write_configs  # noqa: E402 (a table of the tests)

FOLDER = ROOT / "docs" / "models"
INDEX = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- the list is written by docs/write_models.py -->", "<!-- end of the list -->"
PARTS = {
    "text_encoder": "text encoder", "image_encoder": "image encoder", "transformer": "transformer",
    "transformer_2": "second transformer", "vae": "VAE",
}  # fmt: skip
LIKE = {"transformer_2": "transformer"}
"""Parts that compute in the type of another one."""
READ_TYPE = str(READ_DTYPE).removeprefix("torch.")
PROMPT, PROMPT_FOR_POCKET = '"a red fox runs through fresh snow"', '"a red ball bouncing on green grass"'

FOUR_STEPS = """\
## Four steps

LightX2V distilled this model to four steps without guidance, as a LoRA: each step guesses the clean video and mixes it
with new noise, at the timesteps 1000, 750, 500 and 250 shifted by 5. `models pull` fetches the LoRA with the
model{names}; files that `{base}` brought are used again. `--lora` adds others to it, `--steps` has no other value.
"""
TWO_PASSES = """\
## Larger than it was trained on

A video beyond {area} times the trained area is made in two passes: all steps at two thirds of the sides, the latents at
twice of those, then {steps} steps more at timesteps {timesteps}; the frames are scaled to the size asked for. Given
frames are encoded for each pass at its size. That takes `{file}`, which `models pull` fetches, too; in a folder of your
own it is `latent_upsampler/`. A plan says so in a line. A restyled video, or one without that part, is rendered at the
trained area and enlarged; `--direct` renders it at once.
"""
SPARSE = """\
## Sparse attention

It was distilled with [video sparse attention](https://arxiv.org/abs/2505.13389). Tokens are cut into blocks of 4x4x4
neighbours, and each block looks at a fifth of the blocks: those that its mean and theirs say matter most. What the
means find among themselves is added through gates, which are weights of this model alone. `weights.toml` says so
(`config`), as the published `config.json` does not; a folder of your own without the published `model_index.json`
takes a `soragen.json` with `{"like": "fastwan2.1-t2v-1.3b"}`.

It is written in torch alone: the chosen blocks are copied together and then attended to, for a few blocks at a time.
That saves operations, and time on a processor; on a graphics card, for which there is no kernel here, it was not timed
and full attention may be as fast. `--attention sage` has no part in it and is refused.

FastVideo gives 61 frames of 832x448 as the size of this model, and makes 81 frames of 832x480 with it, too. Where it
says timesteps 757 and 522, its code takes the nearest of its shifted noise levels, .7568 and .5217.
"""

NOTES = {
    "fastwan2.1-t2v-1.3b": SPARSE,
}


def pages() -> dict[str, str]:
    """The text of every page by the name of its file."""
    return {f"{checkpoint.name}.md": page(checkpoint) for checkpoint in catalog().values()}


def page(checkpoint: Checkpoint) -> str:
    parts = [f"# {checkpoint.name}", "<!-- written by docs/write_models.py -->", sentence(checkpoint)]
    parts.append("```sh\n" + "\n".join(commands(checkpoint)) + "\n```")
    parts += ["## What it is", table(["", ""], facts(checkpoint))]
    parts += ["## Licence", table(["part", "licence", "commercial use", "where", "your videos"], terms(checkpoint))]
    parts += ["## Memory", memory(checkpoint)]
    parts += ["## What was run", evidence(checkpoint)]
    parts += [NOTES[checkpoint.name].rstrip()] if checkpoint.name in NOTES else []
    parts += [*four_steps(checkpoint), *two_passes(checkpoint)]
    return "\n\n".join(parts) + "\n"


def sentence(checkpoint: Checkpoint) -> str:
    text = checkpoint.description
    more = f" [More about it](../models.md#{checkpoint.name})." if checkpoint.source == EMBEDDED else ""
    return text[0].upper() + text[1:] + "." + more


def commands(checkpoint: Checkpoint) -> Iterator[str]:
    name, native, abilities = checkpoint.name, checkpoint.native, checkpoint.abilities
    if checkpoint.is_hub:
        yield f"soragen models pull {name} --dry-run      # what it would fetch, and its terms"
        yield f"soragen models pull {name}"
    model = f" --model {name}" if checkpoint.is_hub else ""
    prompt = PROMPT if checkpoint.is_hub else PROMPT_FOR_POCKET
    seconds = f"{float(native.seconds):g}"
    if abilities.text:
        yield f"soragen generate {prompt}{model}"
        yield f"soragen generate {prompt}{model} --size {native.width}x{native.height} --seconds {seconds}"
    ends = " --last end.png" if abilities.last_frame else ""
    if abilities.first_frame:
        yield f"soragen animate start.png {prompt}{model}{ends}"


def facts(checkpoint: Checkpoint) -> Iterator[list[str]]:
    native, defaults, dtypes = checkpoint.native, checkpoint.defaults, checkpoint.dtypes
    yield ["family", f"`{checkpoint.family}`"]
    if checkpoint.is_hub:
        commit = f", commit `{checkpoint.revision[:8]}`" if checkpoint.revision else ""
        file = f"`{checkpoint.file}` of " if checkpoint.file else ""
        yield ["source", f"{file}[{checkpoint.source}](https://huggingface.co/{checkpoint.source}){commit}"]
    for part in checkpoint.loras:
        commit = f", commit `{part.revision[:8]}`" if part.revision else ""
        which = f"LoRA for {LORAS[part.folder]} noise" if LORAS[part.folder] else "LoRA"
        yield [which, f"`{part.file}` of [{part.source}](https://huggingface.co/{part.source}){commit}"]
    yield ["to download", download(checkpoint)]
    longest = f", at most {native.max_num_frames} at once" if native.max_num_frames != native.num_frames else ""
    yield [
        "trained on",
        f"{native.width}x{native.height}, {native.num_frames} frames at {format_fps(native.fps)} fps{longest}",
    ]
    yield ["unless told otherwise", ", ".join(settings(checkpoint))]
    yield ["negative prompt", f"`{defaults.negative_prompt}`" if defaults.negative_prompt else "none"]
    text_encoder, transformer, vae = dtypes.text_encoder, dtypes.transformer, dtypes.vae
    reads = "" if vae == READ_TYPE else f" ({READ_TYPE} to encode given frames)"
    yield ["computes in", f"text encoder {text_encoder}, transformer {transformer}, VAE {vae}{reads}"]
    yield ["takes", "; ".join(takes(checkpoint))]


def download(checkpoint: Checkpoint) -> str:
    if not checkpoint.is_hub:
        return "nothing: it is inside the package"
    return f"{checkpoint.num_bytes / 1e9:.1f} GB" if checkpoint.num_bytes else "`--dry-run` says it"


def settings(checkpoint: Checkpoint) -> Iterator[str]:
    defaults = checkpoint.defaults
    yield f"{defaults.width}x{defaults.height}"
    yield f"{defaults.num_steps} steps"
    low = defaults.low_noise_guidance_scale
    if defaults.guidance_scale == 1:
        yield "no guidance"
    else:
        yield f"guidance {defaults.guidance_scale:g}" + (f", for low noise {low:g}" if low else "")
    if defaults.schedule == "listed":
        yield "timesteps " + " ".join(f"{timestep:g}" for timestep in defaults.timesteps)
    elif defaults.shifts:
        yield ", ".join(f"shift {at.shift:g} at {at.size}" for at in defaults.shifts)
    elif defaults.schedule.startswith("flow") and defaults.schedule != "flow_dynamic":
        yield f"shift {defaults.shift:g}"
    yield f"noise levels `{defaults.schedule}`"
    yield f"solver {defaults.solver}"


def takes(checkpoint: Checkpoint) -> Iterator[str]:
    abilities = checkpoint.abilities
    yield "a prompt alone" if abilities.text else "a prompt and frames, never a prompt alone"
    if abilities.any_frames:
        yield "given frames anywhere in the clip"
    elif abilities.first_frame:
        yield "a first and a last frame" if abilities.last_frame else "a first frame"


def terms(checkpoint: Checkpoint) -> Iterator[list[str]]:
    for part, licence in checkpoint.licences.items():
        yield [part, f"[{licence.id}]({licence.url})", licence.commercial, licence.territory, licence.output]


def memory(checkpoint: Checkpoint) -> str:
    """Weights and activations of each part at the trained size, as the plan has them."""
    native, work = checkpoint.native, work_of(checkpoint)
    held = {"transformer": work.transformer_bytes, "transformer_2": work.transformer_bytes, "vae": work.vae_bytes}
    rows, peaks = [], []
    for part, numbers in weights_of(checkpoint).items():
        dtype = READ_TYPE if part == "image_encoder" else getattr(checkpoint.dtypes, LIKE.get(part, part))
        weights, active = (count * DTYPES[dtype].itemsize for count in (numbers, held.get(part, 0) // 4))
        peaks.append((weights + active, PARTS[part]))
        rows.append([PARTS[part], f"{numbers / 1e6:,.0f} M", dtype, gb(weights), gb(active) if active else "-"])
    most, where = max(peaks)
    return "\n\n".join(
        [
            f"At {native.width}x{native.height}, {native.num_frames} frames, in the types above:",
            table(["part", "numbers", "type", "weights", "at work"], rows),
            wrapped(
                f"One part is in memory at a time, so that the most is about {gb(most)}, for the {where}; Python, "
                "torch and the latents come on top. These are the plan's own sums, which `--dry-run` prints for a "
                f"video, made from the configs alone by `python docs/write_models.py`. {measured(checkpoint)}"
            ),
        ]
    )


def work_of(checkpoint: Checkpoint) -> Work:
    family, native = family_of(checkpoint), checkpoint.native
    size = VideoSize(native.width, native.height, native.num_frames, native.fps)
    with tempfile.TemporaryDirectory() as temporary:
        if checkpoint.source == EMBEDDED:
            folder = checkpoint_folder(checkpoint)
        else:
            folder = write_configs(checkpoint.name, Path(temporary) / "configs")
        return family.work(folder, lay_grid(size, family.compression(folder)))


def weights_of(checkpoint: Checkpoint) -> dict[str, int]:
    """How many numbers each part has."""
    if checkpoint.name in PUBLISHED:
        counts = {part: network.num_weights for part, network in PUBLISHED[checkpoint.name].items()}
    else:
        folder = checkpoint_folder(checkpoint)
        counts = {part: count(folder / part) for part in PARTS if (folder / part).is_dir()}
    return {part: counts[part] for part in PARTS if part in counts}


def count(folder: Path) -> int:
    total = 0
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return total


def evidence(checkpoint: Checkpoint) -> str:
    if checkpoint.source == EMBEDDED:
        return wrapped(
            "Everything: it was trained, measured and looked at on a computer without a graphics card "
            "([its model card](../../training/README.md), [what was measured](../bench.md))."
        )
    few, tests = checkpoint.defaults.schedule == "listed", f"`tests/families/{checkpoint.family}/`"
    gates = ", but for the gates of its attention, which they lack" if checkpoint.config else ""
    alike = "find what a plain loop over blocks finds" if checkpoint.config else "make the same latents"
    return wrapped(
        "Not the published weights: this project has not run them yet, and has timed nothing on a graphics card. "
        "The tests hold that the networks built from its configs have the names and shapes of diffusers' and "
        f"transformers'{gates} (`tests/test_catalog_published.py`)"
        + (", that its steps and their noise are those of diffusers' scheduler" if few else "")
        + (", that such a LoRA changes them as PEFT would" if checkpoint.loras else "")
        + f", and that small random networks of its kind {alike} ({tests})."
    )


def measured(checkpoint: Checkpoint) -> str:
    if checkpoint.source == EMBEDDED:
        return "On a processor every part computes in float32; [what was measured](../bench.md) is there."
    return "They were not measured with these weights."


def four_steps(checkpoint: Checkpoint) -> Iterator[str]:
    if (other := f"{checkpoint.name}-4step") in catalog():
        yield f"[{other}]({other}.md) is the same model in four steps."
    if checkpoint.loras:
        head, _, text = FOUR_STEPS.partition("\n\n")
        names = ", one for each expert" if len(checkpoint.loras) > 1 else ""
        yield f"{head}\n\n{wrapped(text.format(base=checkpoint.name.removesuffix('-4step'), names=names))}"


def two_passes(checkpoint: Checkpoint) -> Iterator[str]:
    timesteps = checkpoint.defaults.second_pass
    for part in checkpoint.parts:
        if part.folder == "latent_upsampler" and timesteps:
            head, _, text = TWO_PASSES.partition("\n\n")
            said = text.format(
                area=f"{checkpoint.native.max_area:g}", steps=len(timesteps), file=part.file,
                timesteps=" ".join(f"{timestep:g}" for timestep in timesteps),
            )  # fmt: skip
            yield f"{head}\n\n{wrapped(said)}"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]
    return re.sub(r"\|  (?=\|)", "| ", "\n".join(lines))  # an empty cell


def wrapped(text: str) -> str:
    code = re.sub(r"`[^`]*`", lambda found: found[0].replace(" ", "\0"), text)  # stays on one line
    return textwrap.fill(code, 120, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def index() -> str:
    """docs/models.md with its list made again."""
    before, _, rest = INDEX.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"{INDEX} has lost the marks round its list"
    rows = (
        [
            f"[{checkpoint.name}](models/{checkpoint.name}.md)",
            checkpoint.description,
            download(checkpoint),
            ", ".join(sorted({licence.id for licence in checkpoint.licences.values()})),
            checkpoint.licence.commercial,
        ]
        for checkpoint in catalog().values()
    )
    listed = table(["model", "what it is", "to download", "licences", "commercial use"], rows)
    return f"{before}{BEGIN}\n{listed}\n{END}{after}"


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    written = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in written:  # of a checkpoint that is not listed any more
            path.unlink()
    INDEX.write_text(index(), encoding="utf-8")
    for name, text in written.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ["SORAGEN_WEIGHTS"] = str(packaged_catalog())  # and not the values that the user has changed
    write()
