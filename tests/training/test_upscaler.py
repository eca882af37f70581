"""The upscaler's stage: pairs that fit each other, inputs as the model gives them, a run that goes on, an export."""

import random
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from soragen.families.pocket import FAMILY
from soragen.families.pocket.vae import PocketVae, VaeConfig
from training import upscaler, vae
from training.upscaler import Pairs, enlargement_loss, lanczos, make_input, planes, render_pairs

CROP = 48


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three steps or so behind it, of a small VAE and few scenes."""
    run = tmp_path_factory.mktemp("run")
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    small = PocketVae(VaeConfig(static_channels=6, motion_channels=4, decoder_width=16, fine_width=8))
    with torch.no_grad():
        for basis in (small.static_basis, small.motion_basis):
            basis.copy_(torch.linalg.qr(torch.randn(basis.T.shape))[0].T)
    vae.save(small, run / "vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upscaler, "SHARD", 2)
        patch.setattr(upscaler, "HELD_OUT_SCENES", 2)
        try:
            upscaler.main([str(run), "--scenes", "2", "--minutes", "0.01", "--batch", "1", "--crop", str(CROP)])
        finally:
            torch.set_num_threads(threads)
    return run


def test_the_two_sizes_show_the_same_at_the_same_place(run: Path) -> None:
    (path,) = (run / "held_out_pairs").iterdir()
    tensors = load_file(path)
    small, large = planes(tensors["small"]), planes(tensors["large"])
    assert small.shape[:2] == large.shape[:2] == (2, 5) and large.shape[-2:] == (256, 256)
    means = F.avg_pool2d(large.flatten(0, 1), 2)
    exact = (means - small.flatten(0, 1)).square().mean()
    for dim in (-1, -2):
        assert exact < (means.roll(1, dim) - small.flatten(0, 1)).square().mean()
        assert exact < (means.roll(-1, dim) - small.flatten(0, 1)).square().mean()


def test_training_pairs_are_the_first_and_the_last_frame(run: Path) -> None:
    (path,) = (run / "pairs").iterdir()
    tensors = load_file(path)
    small, large = planes(tensors["small"]), planes(tensors["large"])
    assert small.shape[1] == 5 and large.shape[1] == 2
    given = make_input("render", vae.load_vae(run), tensors["small"], large)
    assert torch.equal(given, small[:, [0, 4]])


def test_the_same_number_gives_the_same_pairs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upscaler, "SHARD", 2)
    render_pairs(tmp_path, 0, held_out=False)
    (again,), (path,) = tmp_path.iterdir(), (run / "pairs").iterdir()
    assert again.name == path.name and again.read_bytes() == path.read_bytes()


def test_a_window_is_cut_at_the_same_place_of_both_sizes(run: Path) -> None:
    pairs = Pairs(sorted((run / "pairs").iterdir()))
    small, large = pairs.draw(random.Random(0), 6, CROP)
    assert small.shape == (6, 5, CROP, CROP, 3) and large.shape == (6, 2, 3, 2 * CROP, 2 * CROP)
    error = F.avg_pool2d(large[:, 0], 2) - planes(small[:, 0])
    assert error.abs().mean() < 0.02


def test_the_vae_is_in_what_is_enlarged(run: Path) -> None:
    (path,) = (run / "pairs").iterdir()
    tensors = load_file(path)
    codec, large = vae.load_vae(run), planes(tensors["large"])
    given = {kind: make_input(kind, codec, tensors["small"], large) for kind in upscaler.INPUTS}
    assert {frames.shape for frames in given.values()} == {(2, 2, 3, *tensors["small"].shape[2:4])}
    assert (given["mean"] - given["render"]).abs().mean() < 0.02
    assert (given["vae"] - given["render"]).abs().mean() > 0.02  # ten channels keep little
    assert sum(upscaler.INPUTS.values()) == pytest.approx(1)


def test_lanczos_keeps_a_constant_and_places_a_ramp() -> None:
    flat = torch.full((1, 3, 8, 10), 0.4)
    assert torch.equal(lanczos(flat), torch.full((1, 3, 16, 20), 102 / 255))
    ramp = torch.linspace(0.1, 0.9, 16).expand(1, 3, 8, 16)
    torch.testing.assert_close(F.avg_pool2d(lanczos(ramp), 2)[..., 4:-4], ramp[..., 4:-4], rtol=0, atol=0.005)


def test_the_loss_minds_outlines() -> None:
    target = torch.zeros(1, 3, 8, 8)
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., ::2] = 0.2
    assert enlargement_loss(target, target) == 0
    assert enlargement_loss(edge, target) > enlargement_loss(target + 0.1, target)


def test_training_goes_on_where_it_was_and_leaves_pairs_alone(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscaler, "SHARD", 2)
    monkeypatch.setattr(upscaler, "HELD_OUT_SCENES", 2)
    pairs = {path: path.stat().st_mtime_ns for path in (run / "pairs").iterdir()}
    before = torch.load(run / "upscaler" / "state.pt", weights_only=True)
    minutes = str(before["seconds"] / 60 + 0.005)
    threads = torch.get_num_threads()
    upscaler.main([str(run), "--scenes", "2", "--minutes", minutes, "--batch", "1", "--crop", str(CROP)])
    torch.set_num_threads(threads)
    after = torch.load(run / "upscaler" / "state.pt", weights_only=True)
    assert after["step"] > before["step"] and after["seconds"] > before["seconds"]
    assert {path: path.stat().st_mtime_ns for path in (run / "pairs").iterdir()} == pairs
    out = capsys.readouterr().out
    assert "'lanczos': {'mean'" in out and "'change'" in out


def test_restored_weights_are_measured_and_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscaler, "SHARD", 2)
    monkeypatch.setattr(upscaler, "HELD_OUT_SCENES", 2)
    restored = tmp_path / "restored"
    shutil.copytree(run, restored)
    (restored / "upscaler" / "state.pt").unlink()
    weights = (restored / "upscaler" / "model.safetensors").read_bytes()
    threads = torch.get_num_threads()
    try:
        for folder in (run, restored):
            upscaler.main([str(folder), "--scenes", "2", "--minutes", "0"])
    finally:
        torch.set_num_threads(threads)
    trained, same = capsys.readouterr().out.splitlines()
    assert same == trained
    assert (restored / "upscaler" / "model.safetensors").read_bytes() == weights


def test_what_is_trained_is_loaded_by_the_family(run: Path, tmp_path: Path) -> None:
    (tmp_path / "upscaler").mkdir()
    for source, target in (
        ("model.safetensors", "diffusion_pytorch_model.safetensors"), ("config.json", "config.json")
    ):  # fmt: skip
        (tmp_path / "upscaler" / target).write_bytes((run / "upscaler" / source).read_bytes())
    network = FAMILY.load_upscaler(tmp_path, torch.device("cpu"), torch.float32)
    assert network is not None
    (large,) = network([torch.rand(1, 16, 16, 3)])
    assert large.shape == (1, 32, 32, 3)
