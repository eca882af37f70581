"""A model from single files, as people have them for other programs: transformer, VAE and text encoder.

What each file is, its tensors say; the config.json that it comes without follows from their shapes. The files are
linked into a folder in the published layout, so that everything else finds them as it finds a model from a hub.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from soragen.catalog import catalog
from soragen.checkpoint import Checkpoint
from soragen.errors import InputError, ResourceError, WeightsError
from soragen.families import load_family
from soragen.installed import locked, model_folder, models_folder
from soragen.layout import INDEX, TOKENIZERS, compare
from soragen.models.download import reuse
from soragen.models.fingerprint import describe, quantised, read_headers
from soragen.models.keys import ReadsSingleFiles, t5_config
from soragen.models.weights import weight_files
from soragen.pipeline.events import Listener, Note

GIVE = "give the files of its transformer, VAE and text encoder together"
WRITABLE = "see who may write there, or set SORAGEN_MODELS to another folder"
EXPERT = re.compile(r"(high|low)[ _-]?noise", re.IGNORECASE)
"""In the name of a file; shapes do not tell a network that makes half of the steps from one that makes all."""
BOUNDARY = "boundary_ratio"
"""What model_index.json says of a model with two transformers, and of no other."""


@dataclass(frozen=True)
class Network:
    """One network in a file, or in the shards that an index names. family: "" for a text encoder, which many share."""

    path: Path
    component: str
    family: str
    config: dict[str, Any]


def assemble(paths: Sequence[Path], name: str | None, listen: Listener) -> Path:
    """Makes a model of single files. Returns its folder, whose name is that of the transformer's file.

    paths: .safetensors files, or the indexes of their shards; tokenizer.json or spiece.model where the text encoder's
    file has none inside. name: which known model it is, where the tensors do not tell. Raises InputError, WeightsError,
    ResourceError.
    """
    tokenizers = [path for path in paths if path.name in TOKENIZERS]
    networks = [network for path in paths if path not in tokenizers for network in _networks(path)]
    families = {network.family for network in networks if network.family}
    if len(families) != 1:
        raise InputError(f"these are files of {' and '.join(sorted(families)) or 'no known video model'}", GIVE)
    (family,) = families
    placed = _placed(networks)
    own = _own_name(placed["transformer"].path)
    with locked(own):
        target = model_folder(own)
        if target.exists():
            raise InputError(f"{own} is in {models_folder()} already", f"soragen models remove {own}")
        try:
            stage = Path(tempfile.mkdtemp(prefix=".add-", dir=models_folder()))
            try:
                checkpoint = _lay_out(stage, placed, family, name)
                _lay_tokenizer(stage / "tokenizer", tokenizers, placed["text_encoder"].path)
                stage.chmod(0o755)
                stage.rename(target)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
        except OSError as error:
            raise ResourceError(f"cannot write in {models_folder()}: {error.strerror}", WRITABLE) from error
    listen(Note(f"{own} is taken for {checkpoint.name} (--as names another); use it by --model {own}"))
    return target


def _networks(path: Path) -> Iterator[Network]:
    """What a file holds. Raises InputError, WeightsError for a file that is of no use here."""
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'is not there'}", "give files, or one folder")
    if re.search(r"-\d{5}-of-\d{5}\.", path.name):
        raise InputError(f"{path} is one part of several", "give the .safetensors.index.json that names them all")
    header = read_headers(weight_files(path))
    if how := quantised(header):
        raise WeightsError(f"{path} is {how}", "take the same model in bf16, fp16 or fp8")
    found = []
    if (config := t5_config(header.shapes)) is not None:
        found.append(Network(path, "text_encoder", "", config))
    for family in sorted({checkpoint.family for checkpoint in catalog().values()}):
        reader = load_family(family)
        if isinstance(reader, ReadsSingleFiles):
            found += [Network(path, part, family, config) for part, config in reader.configs(header.shapes).items()]
    if not found:
        what = " with ".join(describe(header.shapes)) or "no network that is known"
        raise WeightsError(f"{path} is {what}", GIVE)
    yield from found


def _placed(networks: list[Network]) -> dict[str, Network]:
    """The networks by their folder in the published layout. Raises InputError where one is absent, or there twice."""
    placed: dict[str, Network] = {}
    # Of two transformers the one for high noise is first; where their names say so, in any order.
    for network in sorted(networks, key=lambda network: "low" in network.path.stem.lower()):
        folder = network.component
        if folder == "transformer" and folder in placed:
            folder = "transformer_2"
        if folder in placed:
            raise InputError(f"{placed[folder].path} and {network.path} are both a {network.component}", "give one")
        placed[folder] = network
    needed = ["transformer", "vae", "text_encoder"]
    if "transformer" in placed and placed["transformer"].config.get("image_dim"):
        needed.append("image_encoder")
    if "transformer_2" not in placed and "transformer" in placed and EXPERT.search(placed["transformer"].path.stem):
        raise InputError(
            f"{placed['transformer'].path} is one of two transformers",
            "give the one for high noise and the one for low noise",
        )
    if missing := [part for part in needed if part not in placed]:
        raise InputError(f"there is no {' and no '.join(missing)} among these files", GIVE)
    return placed


def _own_name(path: Path) -> str:
    stem = re.sub(r"[^\w.+-]+", "_", path.name.split(".safetensors")[0]).lstrip("_.+-") or "model"
    return f"{stem}-files" if stem in catalog() else stem


def _lay_out(stage: Path, placed: dict[str, Network], family: str, name: str | None) -> Checkpoint:
    """Configs and links in `stage`; nothing that is kept where the files do not go together, which raises."""
    for folder, network in placed.items():
        _describe(stage / folder, network)
    _check(stage, placed, family)
    checkpoint = _chosen(stage, family, name, has_two="transformer_2" in placed)
    if index := _index_of(checkpoint):
        (stage / INDEX).write_text(json.dumps(index), encoding="utf-8")
    described = {"like": checkpoint.name, "description": f"{checkpoint.name}, from {placed['transformer'].path.name}"}
    (stage / "soragen.json").write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    for folder, network in placed.items():
        _link(stage / folder, network)
    return checkpoint


def lay_out(folder: Path, paths: Sequence[Path]) -> None:
    """Gives each network in these files its folder in `folder`: a config.json and a link. Raises as `assemble`."""
    try:
        for network in (network for path in paths for network in _networks(path)):
            _describe(folder / network.component, network)
            _link(folder / network.component, network)
    except OSError as error:
        raise ResourceError(f"cannot write in {folder}: {error.strerror}", WRITABLE) from error


def _describe(folder: Path, network: Network) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(network.config, indent=1), encoding="utf-8")


def _link(folder: Path, network: Network) -> None:
    for file in {network.path, *weight_files(network.path)}:
        if not reuse(file, folder / file.name):
            raise ResourceError(f"cannot link {file} into {folder}", WRITABLE)


def _check(stage: Path, placed: dict[str, Network], family: str) -> None:
    """Raises WeightsError where the networks were not trained for each other."""
    transformer, vae, encoder = (placed[part] for part in ("transformer", "vae", "text_encoder"))
    second = placed.get("transformer_2", transformer)
    if second.config != transformer.config:
        raise WeightsError(f"{transformer.path} and {second.path} are of different sizes", "give the two of one model")
    reader = load_family(family)
    channels, made = reader.latent_channels(stage), transformer.config["out_channels"]
    if channels != made:
        raise WeightsError(f"{transformer.path} makes latents of {made} channels, {vae.path} reads {channels}", GIVE)
    wanted = reader.text_encoder if isinstance(reader, ReadsSingleFiles) else {}
    if denied := [f"{key} {encoder.config[key]}, not {value}" for key, value in wanted.items()
                  if encoder.config[key] != value]:  # fmt: skip
        raise WeightsError(
            f"{encoder.path} is not the text encoder of {family}: it has {', '.join(denied)}",
            "give the one that the transformer was trained with",
        )


def _chosen(stage: Path, family: str, name: str | None, *, has_two: bool) -> Checkpoint:
    """The known model that the networks in `stage` are. Raises InputError where several could be, or none."""
    known = [one for one in catalog().values() if one.family == family and one.is_hub and not one.loras]
    if name is not None:
        named = next((checkpoint for checkpoint in known if checkpoint.name == name), None)
        if named is None:
            raise InputError(f"{name} is no model of {family}", f"known: {', '.join(one.name for one in known)}")
        denied = compare(stage, named.signature)[1]
        if has_two != (BOUNDARY in _index_of(named)):
            denied.append(f"{'two transformers were' if has_two else 'one transformer was'} given")
        if denied:
            raise WeightsError(f"these files are not {name}: {'; '.join(denied)}", "see what they are without --as")
        return named
    fitting = []
    for checkpoint in known:
        confirmed, denied = compare(stage, checkpoint.signature)
        if not denied and list(_index_of(checkpoint)) == [BOUNDARY] * has_two:
            fitting.append((confirmed, checkpoint))
    most = max((confirmed for confirmed, _ in fitting), default=0)
    names = [checkpoint.name for confirmed, checkpoint in fitting if confirmed == most]
    if len(names) != 1:
        one_of = f"name it by --as {' or --as '.join(names)}" if names else f"known: {', '.join(c.name for c in known)}"
        raise InputError("which model these files are cannot be told from their tensors", one_of)
    return catalog()[names[0]]


def _index_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What model_index.json has to say of this model."""
    start = "model_index."
    return {key.removeprefix(start): value for key, value in checkpoint.signature.items() if key.startswith(start)}


def _lay_tokenizer(folder: Path, given: list[Path], encoder: Path) -> None:
    """The tokenizer that was given, or the one that repackaged encoders hold as a tensor. Raises InputError."""
    folder.mkdir()
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} are both a tokenizer", "give one")
    if given:
        if not given[0].is_file() or not reuse(given[0], folder / given[0].name):
            raise InputError(f"{given[0]} cannot be linked", "see whether it is there")
        return
    for path in weight_files(encoder):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                if f".{key}".endswith(".spiece_model"):
                    (folder / "spiece.model").write_bytes(file.get_tensor(key).numpy().tobytes())
                    return
    raise InputError(f"{encoder} has no tokenizer inside", "give its tokenizer.json or spiece.model, too")
