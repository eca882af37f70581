"""Models from folders that the user has, and what `verify` finds in them. None of it opens a socket."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from hub_server import BIG, NEEDED, WEIGHTS, Hub, a_checkpoint
from safetensors.torch import save

from soragen.catalog import catalog, checkpoint_folder, find, identify
from soragen.cli import app, entry
from soragen.errors import InputError, WeightsError
from soragen.installed import model_folder, read_record
from soragen.pipeline.add import add
from soragen.pipeline.pull import plan_pull, pull
from soragen.pipeline.remove import remove
from soragen.pipeline.report import models_report
from soragen.pipeline.verify import failure, verify

VAE = "vae/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"


@pytest.fixture
def have(models: Path, tmp_path: Path) -> Path:
    """A folder with a checkpoint that another program downloaded."""
    (tmp_path / "weights.toml").write_text(WEIGHTS)
    write(tmp_path / "have", a_checkpoint())
    return tmp_path / "have"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def ignore(event: object) -> None:
    pass


def test_add_links_what_is_needed(have: Path, no_network: None) -> None:
    checkpoint, missing = add(have, None, ignore)
    assert (checkpoint.name, missing) == ("tiny", [])
    folder = checkpoint_folder(find("tiny"))
    assert folder == model_folder("tiny")
    for path in NEEDED:
        assert (folder / path).samefile(have / path)
    assert {file.path for file in find("tiny").files} == NEEDED
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".py")]
    assert next(row for row in models_report() if row["name"] == "tiny")["here"] is True


def test_add_says_what_is_missing_and_pull_fetches_that_alone(have: Path) -> None:
    (have / BIG).unlink()
    _, missing = add(have, None, ignore)
    assert missing == [BIG]
    with pytest.raises(WeightsError, match="only partly") as caught:
        checkpoint_folder(find("tiny"))
    assert str(caught.value.hint).startswith("soragen models pull tiny")
    with Hub(a_checkpoint()) as server:
        pull(plan_pull("tiny", server.url), ignore)
        assert [one.path.endswith(BIG) for one in server.fetched()] == [True]
    assert checkpoint_folder(find("tiny")) == model_folder("tiny")
    assert not (have / BIG).exists()


def test_a_file_of_another_revision_is_replaced_and_the_users_own_stays(have: Path) -> None:
    other = save({"v": torch.ones(64, 64)})
    (have / VAE).write_bytes(other)
    add(have, None, ignore)
    with Hub(a_checkpoint()) as server:
        pull(plan_pull("tiny", server.url), ignore)
        assert (model_folder("tiny") / VAE).read_bytes() == server.files[VAE]
    assert (have / VAE).read_bytes() == other


def test_add_refuses_what_it_is_not(have: Path, tmp_path: Path, no_network: None) -> None:
    with pytest.raises(WeightsError, match=r"transformer\.num_layers is 2 and not 40"):
        add(have, "wan2.1-t2v-14b", ignore)
    with pytest.raises(InputError, match="is a file"):
        add(have / BIG, None, ignore)
    with pytest.raises(InputError, match="is not there"):
        add(tmp_path / "nowhere", None, ignore)
    with pytest.raises(InputError, match="not a model that is pulled"):
        add(have, "pocket", ignore)
    pickles = {path: data for path, data in a_checkpoint().items() if not path.endswith(".safetensors")}
    write(tmp_path / "pickles", pickles)
    with pytest.raises(WeightsError, match="no weights in safetensors"):
        add(tmp_path / "pickles", None, ignore)
    write(tmp_path / "one", {path: data for path, data in a_checkpoint().items() if path != ENCODER})
    with pytest.raises(WeightsError, match=r"one holds the weights of text_encoder only as .*\.bin") as refused:
        add(tmp_path / "one", None, ignore)
    assert "can run code" in str(refused.value.hint)
    write(tmp_path / "unknown", a_checkpoint(num_layers=77))
    with pytest.raises(InputError, match="cannot be told") as caught:
        add(tmp_path / "unknown", None, ignore)
    assert "--as" in str(caught.value.hint)
    assert not (tmp_path / "models" / "tiny").exists()


CONFIGS = {
    "wan2.1-t2v-1.3b": {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16},
    "wan2.1-t2v-14b": {"num_layers": 40, "num_attention_heads": 40, "in_channels": 16},
    "wan2.2-ti2v-5b": {"num_layers": 30, "num_attention_heads": 24, "in_channels": 48},
    "wan2.2-t2v-a14b": {"num_layers": 40, "num_attention_heads": 40, "in_channels": 16, "boundary_ratio": 0.875},
    "wan2.2-i2v-a14b": {"num_layers": 40, "num_attention_heads": 40, "in_channels": 36, "boundary_ratio": 0.9},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_published_checkpoints_are_told_apart_by_their_configs(have: Path, tmp_path: Path, name: str) -> None:
    import json

    values = dict(CONFIGS[name])
    index = {"boundary_ratio": values.pop("boundary_ratio", None)}
    config = {"_class_name": "WanTransformer3DModel", "image_dim": None, **values}
    files = {"model_index.json": index, "transformer/config.json": config}
    write(tmp_path / "x", {path: json.dumps(value).encode() for path, value in files.items()})
    candidates, fits = identify(tmp_path / "x")
    assert fits and [checkpoint.name for checkpoint in candidates] == [name]
    assert find(str(tmp_path / "x")).defaults == catalog()[name].defaults


def test_verify_finds_a_changed_file_and_pull_mends_it(have: Path) -> None:
    with Hub(a_checkpoint()) as server:
        pull(plan_pull("tiny", server.url), ignore)
        assert failure("tiny", verify("tiny", ignore)) is None
        path = model_folder("tiny") / VAE
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.write_bytes(damaged)
        found = failure("tiny", verify("tiny", ignore))
        assert found and found.exit_code == 3 and VAE in found.message and "pull tiny" in str(found.hint)
        server.asked.clear()
        pull(plan_pull("tiny", server.url), ignore)
        assert [one.path.endswith(VAE) for one in server.fetched()] == [True]
        assert failure("tiny", verify("tiny", ignore)) is None


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "a is all zero"), (float("nan"), "a holds values that are not finite")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verify_finds_tensors_that_no_training_made(
    have: Path, no_network: None, value: float, said: str, dtype: torch.dtype
) -> None:
    tensors = {"a": torch.full((4, 4), value, dtype=dtype), "bias": torch.zeros(4), "b": torch.ones(2, 2)}
    (have / VAE).write_bytes(save(tensors))
    add(have, None, ignore)
    wrong = [one for one in verify("tiny", ignore) if one.problem]
    assert [(one.path, one.problem) for one in wrong] == [(VAE, said)]
    assert [one.path for one in verify(str(have), ignore) if one.problem] == [VAE]  # a folder of the user's own, too


def test_the_embedded_model_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its VAE has matrices of zeros: a residual that was never trained."""
    checked = verify("pocket", ignore)
    assert failure("pocket", checked) is None and len(checked) == len(find("pocket").files)
    monkeypatch.setattr("soragen.pipeline.verify.checkpoint_folder", lambda checkpoint: tmp_path)
    assert {one.problem for one in verify("pocket", ignore)} == {"it is missing"}


def test_verify_of_a_truncated_file(have: Path, no_network: None) -> None:
    (have / VAE).write_bytes((have / VAE).read_bytes()[:-10])
    assert "cannot be read" in next(one.problem for one in verify(str(have), ignore) if one.problem)


def test_remove_leaves_what_was_added(have: Path, no_network: None) -> None:
    add(have, None, ignore)
    remove("tiny")
    assert not model_folder("tiny").exists() and read_record(model_folder("tiny")) is None
    assert (have / BIG).read_bytes() == a_checkpoint()[BIG]
    with pytest.raises(InputError, match="tiny is not in"):
        remove("tiny")


def test_the_commands(have: Path, no_network: None, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        return entry.run(app, ["models", *arguments]), *capsys.readouterr()

    folder = str(model_folder("tiny"))
    assert run("path", "tiny")[0] == 3
    assert run("add", str(have), "--as", "tiny")[:2] == (0, f"{folder}\n")
    assert run("path", "tiny")[:2] == (0, f"{folder}\n")
    code, out, _ = run("verify", "tiny")
    assert code == 0 and {line.split()[0] for line in out.splitlines()} == {"ok"}
    (have / VAE).write_bytes(b"x" * (have / VAE).stat().st_size)  # a link: the model's file changes with it
    code, out, err = run("verify", "tiny")
    assert code == 3 and f"WRONG  {VAE}" in out and "soragen models pull tiny" in err
    assert run("remove", "tiny", "--yes")[0] == 0
    assert run("list")[0] == run("info", "tiny")[0] == 0


def test_no_command_but_pull_opens_a_socket(have: Path, no_network: None, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["generate", "a ball"], ["generate", "a ball", "--dry-run"], ["image", "a ball", "--dry-run"]):
        assert entry.run(app, [*arguments, "--model", "tiny"]) == 3
        err = capsys.readouterr().err
        assert "tiny is not on this machine" in err and "\nhint: soragen models pull tiny; " in err
        assert "soragen models pull tiny --dry-run shows what it would take" in err
