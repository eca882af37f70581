"""Pocket's refiner: it changes the fine channels of made frames alone, and is loaded strictly from its folder."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from soragen.catalog import checkpoint_folder, find
from soragen.errors import WeightsError
from soragen.families.pocket import FAMILY
from soragen.families.pocket.refiner import PocketRefiner, RefinerConfig
from soragen.families.pocket.transformer import PocketTransformer, TransformerConfig
from soragen.models.family import RefiningTransformer

CPU = torch.device("cpu")
COARSE, FINE = 3, 2


@pytest.fixture
def network() -> PocketRefiner:
    """Small, and no weight is trivial."""
    torch.manual_seed(0)
    network = PocketRefiner(RefinerConfig(COARSE + FINE, COARSE, width=8, num_blocks=2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
        network.latent_std.copy_(torch.rand(COARSE + FINE) + 0.5)
    return network.eval()


def test_only_the_fine_of_made_frames_is_told_anew(network: PocketRefiner) -> None:
    latents, made = torch.randn(1, COARSE + FINE, 5, 4, 6), torch.tensor([True, True, False, True, True])
    refined = network.refine(latents.clone(), made)
    assert torch.equal(refined[:, :COARSE], latents[:, :COARSE])
    changed = (refined != latents)[:, COARSE:].all(dim=(3, 4)).all(dim=1)[0]
    assert changed.tolist() == [True, True, False, True, True]
    assert torch.equal(refined[:, :, 2], latents[:, :, 2])


def test_a_frame_is_told_from_itself_and_its_neighbours(network: PocketRefiner) -> None:
    latents, made = torch.randn(1, COARSE + FINE, 7, 4, 6), torch.ones(7, dtype=torch.bool)
    refined = network.refine(latents.clone(), made)[:, COARSE:]
    latents[:, :COARSE, 4] += 1
    again = network.refine(latents.clone(), made)[:, COARSE:]
    changed = [not torch.equal(refined[:, :, k], again[:, :, k]) for k in range(7)]
    assert changed == [False, False, False, True, True, True, False]
    latents[:, COARSE:] = 0  # what was drawn has no part in it
    assert torch.equal(network.refine(latents.clone(), made)[:, COARSE:], again)


def test_beside_given_frames_their_fine_has_a_part_in_it(network: PocketRefiner) -> None:
    latents = torch.randn(1, COARSE + FINE, 7, 4, 6)
    made = torch.tensor([True, False, True, True, True, True, False])
    refined = network.refine(latents.clone(), made)
    for given, beside in ((1, [0, 2]), (6, [5])):
        other = latents.clone()
        other[:, COARSE:, given] += 1
        again = network.refine(other.clone(), made)
        assert [k for k in range(7) if made[k] and not torch.equal(refined[:, :, k], again[:, :, k])] == beside


def test_the_ends_of_a_video_are_told_apart(network: PocketRefiner) -> None:
    same = torch.randn(1, COARSE + FINE, 1, 4, 6).expand(
        -1, -1, 6, -1, -1
    )  # nothing changes but the place in the video
    told = [network(network.look(same, torch.ones(1, 6), k)) for k in range(6)]
    assert torch.equal(told[2], told[3]) and torch.equal(told[3], told[4])
    assert all(not torch.equal(told[k], told[2]) for k in (0, 1, 5)) and not torch.equal(told[0], told[1])


def test_a_picture_is_told_as_the_first_frame_of_what_stands_still(network: PocketRefiner) -> None:
    """It was taught on clips alone: no frame there is the first and the last."""
    picture = torch.randn(1, COARSE + FINE, 1, 4, 6)
    still = picture.expand(-1, -1, 7, -1, -1)
    assert torch.equal(network.look(picture, torch.ones(1, 1), 0), network.look(still, torch.ones(1, 7), 0))


def test_it_answers_in_the_units_of_the_latents(network: PocketRefiner) -> None:
    latents, made = torch.randn(1, COARSE + FINE, 3, 4, 6), torch.ones(3, dtype=torch.bool)
    refined, spread = network.refine(latents.clone(), made), network.latent_std.detach().clone().view(1, -1, 1, 1, 1)
    with torch.no_grad():
        network.latent_std.fill_(1)
    plain = network.refine(latents / spread, made)
    torch.testing.assert_close(refined, plain * spread)


def test_what_comes_again_goes_on_at_the_end(network: PocketRefiner) -> None:
    """The frames that end a loop move towards the one behind those they repeat, and it begins as it ends."""
    transformer = PocketTransformer(TransformerConfig(latent_channels=COARSE + FINE, width=32, num_layers=1))
    transformer.refiner = network
    made = torch.ones(6, dtype=torch.bool)
    latents = torch.randn(1, COARSE + FINE, 6, 4, 4)
    latents[:, :, -1] = latents[:, :, 1]
    refined = transformer.refine(latents.clone(), made, num_cyclic=1)
    assert refined.shape == latents.shape
    on = network.refine(torch.cat([latents, latents[:, :, 2:3]], dim=2), torch.ones(7, dtype=torch.bool))
    assert torch.equal(refined[:, :, 2:], on[:, :, 2:-1])
    assert torch.equal(refined[:, :, :2], refined[:, :, -2:])
    assert torch.equal(transformer.refine(latents.clone(), made), network.refine(latents.clone(), made))


def write(network: PocketRefiner, folder: Path) -> None:
    folder.mkdir()
    tensors = {name: tensor.half() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "PocketRefiner"} | asdict(network.config)))


def pocket(folder: Path) -> Path:
    """Pocket's folder without its refiner."""
    (folder / "transformer").symlink_to(checkpoint_folder(find("pocket")) / "transformer")
    return folder


def test_it_is_a_part_of_the_checkpoint_and_may_be_missing(network: PocketRefiner, tmp_path: Path) -> None:
    folder = pocket(tmp_path)
    without = FAMILY.load_transformer(folder, CPU, torch.float32)
    latents, made = torch.randn(1, 160, 3, 4, 4), torch.ones(3, dtype=torch.bool)
    assert isinstance(without, RefiningTransformer) and without.refine(latents, made) is latents
    write(network, folder / "refiner")
    found = FAMILY.load_transformer(folder, CPU, torch.bfloat16).refiner
    assert found is not None and found.config == network.config
    assert found.conv_in.weight.dtype == torch.bfloat16 and found.latent_std.dtype == torch.float32


def test_an_incomplete_file_is_refused(network: PocketRefiner, tmp_path: Path) -> None:
    folder = pocket(tmp_path)
    write(network, folder / "refiner")
    values = asdict(network.config) | {"num_blocks": 3}
    (folder / "refiner" / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"blocks\.2"):
        FAMILY.load_transformer(folder, CPU, torch.float32)
