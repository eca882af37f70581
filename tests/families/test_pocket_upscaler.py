"""Pocket's upscaler: bicubic before training, frame by frame, any size, and loaded strictly from its folder."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from soragen.errors import WeightsError
from soragen.families import load_family
from soragen.families.pocket import FAMILY
from soragen.families.pocket.upscaler import PocketUpscaler, UpscalerConfig
from soragen.models.family import UpscalerFamily

CPU = torch.device("cpu")


@pytest.fixture
def upscaler() -> PocketUpscaler:
    """Small, and no weight is trivial."""
    torch.manual_seed(0)
    network = PocketUpscaler(UpscalerConfig(width=8, num_blocks=2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    return network.eval()


def test_a_new_network_is_bicubic_enlargement() -> None:
    frames = torch.rand(2, 3, 6, 8)
    with torch.no_grad():
        large = PocketUpscaler(UpscalerConfig(width=8, num_blocks=1)).enlarge(frames)
    torch.testing.assert_close(large, F.interpolate(frames, scale_factor=2, mode="bicubic"))


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 9), (1, 1)])
def test_every_size_is_doubled(upscaler: PocketUpscaler, height: int, width: int) -> None:
    (large,) = upscaler([torch.rand(1, height, width, 3)])
    assert large.shape == (1, 2 * height, 2 * width, 3)


def test_chunks_come_as_they_went_in_and_a_frame_is_enlarged_alone(upscaler: PocketUpscaler) -> None:
    frames = torch.rand(5, 8, 12, 3)
    chunks = list(upscaler(frames.split([1, 3, 1])))
    assert [len(chunk) for chunk in chunks] == [1, 3, 1]
    (whole,) = upscaler([frames])
    assert torch.equal(torch.cat(chunks), whole)
    assert whole.dtype == torch.float32 and whole.min() >= 0 and whole.max() <= 1
    (backward,) = upscaler([frames.flip(0)])
    assert torch.equal(backward, whole.flip(0))


def test_nothing_is_taken_before_it_is_asked(upscaler: PocketUpscaler) -> None:
    taken = 0

    def source() -> Iterator[Tensor]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield torch.rand(1, 4, 4, 3)

    stream = upscaler(source())
    assert taken == 0
    next(stream)
    assert taken == 1


def write(upscaler: PocketUpscaler, folder: Path) -> None:
    folder.mkdir()
    tensors = {name: tensor.half() for name, tensor in upscaler.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    values = {"_class_name": "PocketUpscaler"} | asdict(upscaler.config)
    (folder / "config.json").write_text(json.dumps(values))


def test_it_is_loaded_from_its_folder_and_computes_in_16_bits(upscaler: PocketUpscaler, tmp_path: Path) -> None:
    assert FAMILY.load_upscaler(tmp_path, CPU, torch.float32) is None
    write(upscaler, tmp_path / "upscaler")
    exact = FAMILY.load_upscaler(tmp_path, CPU, torch.float32)
    rounded = FAMILY.load_upscaler(tmp_path, CPU, torch.bfloat16)
    assert exact is not None and rounded is not None and exact.factor == 2
    frames = torch.rand(2, 8, 8, 3)
    (a,), (b,), (c,) = exact([frames]), rounded([frames]), upscaler([frames])
    torch.testing.assert_close(a, c, rtol=0, atol=0.01)
    assert b.dtype == torch.float32 and 0 < float((a - b).abs().max()) < 0.05


def test_an_incomplete_file_is_refused(upscaler: PocketUpscaler, tmp_path: Path) -> None:
    write(upscaler, tmp_path / "upscaler")
    (tmp_path / "upscaler" / "config.json").write_text(json.dumps({"width": 8, "num_blocks": 3}))
    with pytest.raises(WeightsError, match=r"blocks\.2"):
        FAMILY.load_upscaler(tmp_path, CPU, torch.float32)


def test_the_engine_asks_only_families_that_have_one() -> None:
    assert isinstance(load_family("pocket"), UpscalerFamily)
    assert not isinstance(load_family("wan"), UpscalerFamily)
