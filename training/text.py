"""Trains pocket's tokenizer and text encoder on captions alone: which attributes does a sentence name?

    python -m training.text RUN
    python -m training.text RUN --steps 1000 --keep 30        # goes on from an encoder that is in RUN/text already

A small T5 encoder reads a caption; linear heads on the mean of its outputs must tell every attribute of the scene and
its weather. Text is cheap, so it sees many more paraphrases, distracting words and misspellings than could be rendered,
and the transformer is then trained on an encoder that already understands. The heads are not shipped.

An encoder that a transformer has learnt to read should be trained on with `--keep`: what it gives for captions of clear
scenes then stays about as it was.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
import time
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from soragen.models.t5 import T5Config, T5Encoder
from training.precision import autocast
from training.world.captions import SYNONYMS, caption
from training.world.scene import ATTRIBUTES, WEATHERS, Scene, sample_scene
from training.world.weather_words import PHRASES, SENTENCES

PAD, EOS, UNKNOWN = 0, 1, 2
VOCABULARY = 2048
CONFIG = T5Config(
    vocab_size=VOCABULARY, d_model=192, d_kv=48, num_heads=4, d_ff=512, num_layers=3,
    relative_attention_num_buckets=32, relative_attention_max_distance=64, feed_forward_proj="gated-gelu",
)  # fmt: skip
MAX_LENGTH = 96
NAMED = ATTRIBUTES | {"weather": WEATHERS}
"""All that a sentence may name."""


def other_words() -> list[str]:
    """English words that say nothing about a scene: the prose of Python's own documentation, less our vocabulary."""
    said = [*SYNONYMS.values(), PHRASES, SENTENCES]
    ours = {word for values in said for phrases in values.values() for p in phrases for word in p.split()}
    words = re.findall(r"[a-z]{3,12}", " ".join(topics.values()).lower())
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, count in counts.items() if count > 4 and word not in ours)


def train_tokenizer(path: Path, words: list[str], num_captions: int) -> None:
    """A Unigram tokenizer in the form of T5's; lower case, and every printable ASCII character has a piece."""
    rng = random.Random(0)
    texts = [caption(sample_scene(rng, weather=True), rng) for _ in range(num_captions)] + [" ".join(words)] * 3
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        initial_alphabet=list(string.printable.strip()), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def disturb(text: str, rng: random.Random, words: list[str]) -> str:
    """Sometimes other words in between, a misspelling, capital letters, or no punctuation."""
    parts = text.split()
    if rng.random() < 0.35:
        for _ in range(rng.randint(1, 5)):
            parts.insert(rng.randint(0, len(parts)), rng.choice(words))
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 2)):
            i = rng.randrange(len(parts))
            parts[i] = misspell(parts[i], rng)
    text = " ".join(parts)
    return text.translate(str.maketrans("", "", string.punctuation)) if rng.random() < 0.2 else text


def misspell(word: str, rng: random.Random) -> str:
    if len(word) < 4:
        return word
    i = rng.randrange(1, len(word) - 1)
    change = rng.randrange(4)
    if change == 0:
        return word[:i] + word[i + 1 :]
    if change == 1:
        return word[:i] + word[i] + word[i:]
    if change == 2:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word[:i] + rng.choice(string.ascii_lowercase) + word[i + 1 :]


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids [B, L] and mask [B, L], padded to the longest."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    rows = [row if len(row) <= MAX_LENGTH else [*row[: MAX_LENGTH - 1], EOS] for row in rows]
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    return ids, ids != PAD


def labels(scenes: list[Scene], named: dict[str, tuple[str, ...]] = ATTRIBUTES) -> Tensor:
    """Index of each scene's value of what is named [B, 6 or 7]."""
    return torch.tensor([[values.index(getattr(scene, name)) for name, values in named.items()] for scene in scenes])


class AttributeHeads(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(values)) for values in NAMED.values())

    def forward(self, embeddings: Tensor, mask: Tensor) -> list[Tensor]:
        weight = mask.float()[..., None]
        mean = (embeddings.float() * weight).sum(1) / weight.sum(1)
        return [head(mean) for head in self.heads]


def change(before: Tensor, after: Tensor, where: Tensor) -> Tensor:
    """Of embeddings [B, L, D], as a share of their squares, on the words [B, L] that are asked about."""
    weight = where.float()[..., None]
    return ((after - before).float().square() * weight).sum() / (before.float().square() * weight).sum().clamp_min(1e-6)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--keep", type=float, default=0, help="how much change counts of what clear captions give")
    parser.add_argument("--captions", type=int, default=30_000, help="to make the tokenizer's pieces from")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1)
    folder, state_path = options.run / "text", options.run / "text" / "state.pt"
    if options.keep and not (folder / "model.safetensors").exists():
        parser.error(f"--keep needs an encoder in {folder}; training.restore brings the one that ships")
    words = other_words()
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(folder / "tokenizer.json", words, options.captions)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = replace(CONFIG, vocab_size=tokenizer.get_vocab_size())
    encoder, heads = T5Encoder(config), AttributeHeads(config.d_model)
    encoder.init_weights()
    if (restored := folder / "model.safetensors").exists() and not state_path.exists():
        encoder.load_state_dict(load_file(restored))
    before = load_encoder(options.run)[1].to(options.device) if options.keep else None
    network = nn.ModuleList([encoder, heads]).to(options.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    start = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began = time.time()
    for step in range(start, options.steps):
        rng = random.Random(step)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * max(0.02, 1 - step / options.steps)
        scenes = [sample_scene(rng, weather=True) for _ in range(options.batch)]
        ids, mask = tokenize(tokenizer, [disturb(caption(scene, rng), rng, words) for scene in scenes])
        ids, mask, truth = ids.to(options.device), mask.to(options.device), labels(scenes, NAMED).to(options.device)
        with autocast(options.device):
            embeddings = encoder(ids, mask)
        answers = heads(embeddings, mask)
        losses = [F.cross_entropy(answer, truth[:, i]) for i, answer in enumerate(answers)]
        if before is not None:
            with torch.no_grad(), autocast(options.device):
                given = before(ids, mask)
            losses.append(options.keep * change(given, embeddings, mask & (truth[:, -1:] == 0)))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            right = [float((a.argmax(1) == truth[:, i]).float().mean()) for i, a in enumerate(answers)]
            shown = " ".join(f"{name} {value:.2f}" for name, value in zip(NAMED, right, strict=True))
            total = float(torch.stack(losses).detach().sum())
            print(f"step {step + 1} loss {total:.3f} right {shown} {time.time() - began:.0f} s", flush=True)
            torch.save(
                {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, state_path
            )
    save_file({name: p.detach().cpu().contiguous() for name, p in encoder.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    save_file({name: p.detach().cpu().contiguous() for name, p in heads.state_dict().items()},
              folder / "heads.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def load_encoder(run: Path) -> tuple[Tokenizer, T5Encoder]:
    """What this script made: the tokenizer and the frozen encoder."""
    folder = run / "text"
    encoder = T5Encoder(T5Config.read(folder))
    encoder.load_state_dict(load_file(folder / "model.safetensors"))
    return Tokenizer.from_file(str(folder / "tokenizer.json")), encoder.eval().requires_grad_(False)


Reader = tuple[Tokenizer, T5Encoder]


@torch.no_grad()
def embed(reader: Reader, texts: list[str], device: str) -> tuple[Tensor, Tensor]:
    """Embeddings [B, L, D] and mask [B, L] of captions; an empty caption is its end token alone."""
    ids, mask = tokenize(reader[0], texts)
    ids, mask = ids.to(device), mask.to(device)
    with autocast(device):
        return reader[1](ids, mask).float(), mask


if __name__ == "__main__":
    main()
