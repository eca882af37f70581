"""Prompts to tokens and embeddings, and the cache in front."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from published import write_encoder, write_tokenizer
from safetensors.torch import save_file

from soragen.errors import InputError, NumericalError, WeightsError
from soragen.models import embedding_cache
from soragen.models import sentencepiece as converted
from soragen.models.embedding_cache import cache_folder, encoder_hash
from soragen.models.text_encoder import PromptEncoder, Tokenizer, load_t5

CPU = torch.device("cpu")
PROMPT = "a red ball bounces on green grass"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_encoder(tmp_path / "text_encoder")
    return tmp_path / "text_encoder"


def prompt_encoder(folder: Path, **options: Any) -> PromptEncoder:
    settings = {"max_length": 16, "device": CPU, "dtype": torch.float32, "cache": folder.parent / "cache", **options}
    return PromptEncoder(folder, folder / "tokenizer.json", **settings)


def entries(folder: Path) -> list[Path]:
    return [path for path in (folder.parent / "cache").rglob("*") if path.is_file()]


# Tokenizer


@pytest.mark.parametrize("prompt", ["", PROMPT, "Ä 🦊 zzz", "  red   ball ", "ﬁne 10,000 ½", "שלום red", "a" * 300])
@pytest.mark.parametrize("max_length", [1, 2, 5, 40])
def test_tokens_are_those_of_the_published_truncation(tmp_path: Path, prompt: str, max_length: int) -> None:
    published = write_tokenizer(tmp_path / "tokenizer.json")
    published.no_padding()
    published.enable_truncation(max_length)
    ids, dropped = Tokenizer(tmp_path / "tokenizer.json").encode(prompt, max_length)
    assert ids == published.encode(prompt).ids
    assert prompt.endswith(dropped)
    published.no_truncation()
    assert bool(dropped) == (len(published.encode(prompt).ids) > max_length)


def test_the_dropped_tail_is_the_prompts_own_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("a red ball ON Ä grass", 4)[1].strip() == "ON Ä grass"
    assert tokenizer.encode("red 🦊 ball", 3)[1].strip() == "ball"


def test_a_lone_surrogate_is_bad_input(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="character 5"):
        Tokenizer(tmp_path / "tokenizer.json").encode("red \udcff", 9)


def test_bad_tokenizers_are_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(WeightsError, match=r"tokenizer\.json is missing") as caught:
        Tokenizer(file)
    assert caught.value.hint and "tokenizer.json" in caught.value.hint
    file.write_text("{}")
    with pytest.raises(WeightsError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(file)
    write_tokenizer(file, end="<end>")
    with pytest.raises(WeightsError, match="</s>"):
        Tokenizer(file)


def test_without_tokenizer_json_the_sentencepiece_model_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sentencepiece

    monkeypatch.setenv("SORAGEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (tmp_path / "text").write_text("".join(f"{PROMPT} at sunset, number {number}\n" for number in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(folder / "spiece"), vocab_size=50,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    published = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    before = sorted(folder.iterdir())
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was used"))
    for prompt in (PROMPT, "  Ä ½ ﬁne  grass ", ""):
        assert Tokenizer(folder / "tokenizer.json").encode(prompt, 99) == ([*published.encode(prompt), 1], "")
    assert sorted(folder.iterdir()) == before  # the checkpoint is as it was
    with monkeypatch.context() as once:
        once.setattr(converted, "convert", lambda folder: pytest.fail("converted twice"))
        assert Tokenizer(folder / "tokenizer.json").pad_id == 0
    (folder / "spiece.model").write_bytes(b"no model")
    with pytest.raises(WeightsError, match=r"spiece\.model cannot be converted"):
        Tokenizer(folder / "tokenizer.json")


# Encoding


def test_a_context_is_the_encoders_output_whatever_it_is_encoded_with(folder: Path) -> None:
    one = prompt_encoder(folder, cache=None).encode([PROMPT])[0]
    many = prompt_encoder(folder, cache=None).encode(["", "a red ball " * 9, PROMPT])
    ids, _ = Tokenizer(folder / "tokenizer.json").encode(PROMPT, 16)
    direct = load_t5(folder, CPU, torch.float32)(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0]
    assert torch.equal(one.embeddings, direct) and torch.equal(many[2].embeddings, direct)
    assert one.mask.all() and [len(context.mask) for context in many] == [1, 16, len(ids)]


def test_padding(folder: Path) -> None:
    plain, masked, attended = (
        prompt_encoder(folder, padding=padding).encode([PROMPT])[0] for padding in ("none", "masked", "attended")
    )
    length = len(plain.mask)
    assert masked.embeddings.shape == attended.embeddings.shape == (16, 32)
    assert masked.mask.tolist() == attended.mask.tolist() == [True] * length + [False] * (16 - length)
    torch.testing.assert_close(masked.embeddings[:length], plain.embeddings, rtol=1e-5, atol=1e-5)
    assert (attended.embeddings[:length] - plain.embeddings).abs().max() > 1e-3


def test_what_is_dropped(folder: Path) -> None:
    encoder = prompt_encoder(folder, max_length=4)
    assert encoder.dropped("a red ball") == "" and encoder.dropped(PROMPT).strip() == "bounces on green grass"
    assert not encoder.loaded


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"vocab_size": 97', '"vocab_size": 20'))
    with pytest.raises(WeightsError, match="knows 20"):
        prompt_encoder(folder)


def test_values_that_are_not_finite_stop_and_are_not_cached(folder: Path) -> None:
    encoder = write_encoder(folder)
    torch.nn.init.constant_(encoder.encoder.final_layer_norm.weight, 3e38)
    save_file(encoder.state_dict(), folder / "model.safetensors")
    with pytest.raises(NumericalError, match="text encoder"):
        prompt_encoder(folder).encode([PROMPT])
    assert not entries(folder)


def test_a_whole_published_model_is_read(folder: Path) -> None:
    shared = write_encoder(folder).shared.weight.detach()
    copy = shared.clone()
    write_encoder(folder, **{"encoder.embed_tokens.weight": copy, "decoder.x": copy[0] + 1, "lm_head.weight": copy * 2})
    assert torch.equal(load_t5(folder, CPU, torch.float32).shared.weight, shared)
    write_encoder(folder, **{"encoder.embed_tokens.weight": torch.zeros_like(shared)})
    with pytest.raises(WeightsError, match=r"embed_tokens\.weight and shared\.weight should be equal"):
        load_t5(folder, CPU, torch.float32)


def test_float16_keeps_the_layers_that_overflow(folder: Path) -> None:
    encoder = load_t5(folder, CPU, torch.float16)
    wide = {name for name, weight in encoder.named_parameters() if weight.dtype == torch.float32}
    assert wide == {f"encoder.block.{n}.layer.1.DenseReluDense.wo.weight" for n in range(3)}
    context = prompt_encoder(folder, dtype=torch.float16).encode([PROMPT])[0]
    exact = prompt_encoder(folder).encode([PROMPT])[0]
    assert context.embeddings.dtype == torch.float16
    assert (context.embeddings - exact.embeddings).norm() < 0.01 * exact.embeddings.norm()


# The cache


def test_a_cached_prompt_loads_no_encoder(folder: Path) -> None:
    first = prompt_encoder(folder)
    fresh = first.encode([PROMPT, ""])
    assert first.loaded
    second = prompt_encoder(folder)
    again = second.encode(["", PROMPT])
    assert not second.loaded
    for one, other in zip(fresh, reversed(again), strict=True):
        assert torch.equal(one.embeddings, other.embeddings) and torch.equal(one.mask, other.mask)
    second.encode(["green grass"])
    assert second.loaded


@pytest.mark.parametrize("change", [{"max_length": 12}, {"dtype": torch.bfloat16}, {"padding": "masked"}])
def test_an_entry_of_other_settings_is_not_used(folder: Path, change: dict[str, Any]) -> None:
    prompt_encoder(folder).encode([PROMPT])
    other = prompt_encoder(folder, **change)
    other.encode([PROMPT])
    assert other.loaded


def test_another_encoder_has_other_entries(folder: Path) -> None:
    prompt_encoder(folder).encode([PROMPT])
    write_encoder(folder, seed=1)
    other = prompt_encoder(folder)
    other.encode([PROMPT])
    assert other.loaded


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other", "folder"])
def test_a_damaged_entry_is_written_again(folder: Path, damage: str) -> None:
    sound = prompt_encoder(folder).encode([PROMPT])[0]
    (path,) = entries(folder)
    content = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    elif damage == "other":
        save_file({"embeddings": torch.zeros(3, 32)}, path)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(b"" if damage == "empty" else content[:-7])
    encoder = prompt_encoder(folder)
    assert torch.equal(encoder.encode([PROMPT])[0].embeddings, sound.embeddings)
    assert encoder.loaded
    if damage != "folder":
        assert path.read_bytes() == content
    assert [entry for entry in path.parent.iterdir() if entry.name.endswith(".part")] == []


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path) -> None:
    (folder.parent / "cache").write_text("a file where the folder should be")
    assert prompt_encoder(folder).encode([PROMPT])


def test_the_least_recently_used_entries_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = prompt_encoder(folder)
    for age, word in ((1, "ball"), (2, "grass"), (3, "sunset")):
        before = entries(folder)
        encoder.encode([word])
        (written,) = set(entries(folder)) - set(before)
        os.utime(written, (age, age))
    encoder.encode(["ball"])  # the oldest is in use again
    monkeypatch.setattr(embedding_cache, "BOUND", sum(path.stat().st_size for path in entries(folder)))
    encoder.encode(["green"])
    assert len(entries(folder)) == 3
    for word, kept in (("ball", True), ("sunset", True), ("grass", False)):
        other = prompt_encoder(folder)
        other.encode([word])
        assert other.loaded != kept, word


def test_the_prompt_is_not_written(folder: Path) -> None:
    prompt_encoder(folder).encode([PROMPT])
    assert all(b"ball" not in path.read_bytes() for path in entries(folder))


def test_large_files_are_known_by_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "HASHED_WHOLE", 1000)
    monkeypatch.setattr(embedding_cache, "SAMPLE_SIZE", 64)
    path, tokenizer = folder / "model.safetensors", folder / "tokenizer.json"
    before, status = encoder_hash(folder, tokenizer), path.stat()
    assert encoder_hash(folder, tokenizer) == before
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = encoder_hash(folder, tokenizer)
    assert changed != before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert encoder_hash(folder, tokenizer) not in (before, changed)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SORAGEN_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("SORAGEN_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "soragen"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local/soragen"
