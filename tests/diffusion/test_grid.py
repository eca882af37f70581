from fractions import Fraction

import pytest
import torch

from soragen.diffusion.grid import Compression, Grid, lay_grid, patchify, unpatchify
from soragen.size import VideoSize

COMPRESSIONS = {
    "pocket and Wan": Compression((4, 8, 8), (1, 2, 2)),
    "TI2V": Compression((4, 16, 16), (1, 2, 2)),
    "LTX-Video": Compression((8, 32, 32), (1, 1, 1)),
    "Mochi": Compression((6, 8, 8), (1, 2, 2)),
    "CogVideoX 1.5": Compression((4, 8, 8), (2, 2, 2)),
    "groups of four": Compression((4, 8, 8), (1, 2, 2), first_frame_alone=False),
    "groups of four in pairs": Compression((4, 8, 8), (2, 2, 2), first_frame_alone=False),
}
SIDES = [(64, 64), (65, 127), (333, 257), (854, 480), (1080, 1920), (1920, 1080), (1280, 720), (4096, 4096)]
LENGTHS = [*range(1, 35), 49, 80, 81, 121, 161, 480]


def grid(width: int, height: int, num_frames: int, compression: Compression) -> Grid:
    return lay_grid(VideoSize(width, height, num_frames, Fraction(24)), compression)


@pytest.mark.parametrize("compression", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
@pytest.mark.parametrize(("width", "height"), SIDES)
def test_a_grid_is_the_smallest_valid_shape_that_holds_what_was_asked(
    compression: Compression, width: int, height: int
) -> None:
    for num_frames in LENGTHS:
        laid = grid(width, height, num_frames, compression)
        asked = (num_frames, height, width)
        rendered = (laid.num_frames, laid.height, laid.width)
        assert all(have >= want for have, want in zip(rendered, asked, strict=True))
        assert laid.is_exact == (rendered == asked)

        # Valid: whole latents, whole patches, and the frames rule of the VAE.
        frames, rows, columns = laid.latent_shape
        assert (laid.height, laid.width) == (rows * compression.stride[1], columns * compression.stride[2])
        alone = int(compression.first_frame_alone)
        assert laid.num_frames == alone + (frames - alone) * compression.stride[0]
        assert laid.latent_shape == tuple(
            count * patch for count, patch in zip(laid.token_shape, compression.patch_size, strict=True)
        )
        assert laid.num_tokens == laid.token_shape[0] * laid.token_shape[1] * laid.token_shape[2]

        # Minimal: one token less on any axis is too small.
        shorter = frames - compression.patch_size[0]
        assert shorter < 1 or compression.num_frames(shorter) < num_frames
        assert laid.height - compression.stride[1] * compression.patch_size[1] < height
        assert laid.width - compression.stride[2] * compression.patch_size[2] < width

        # The crop lies inside, centred to a pixel.
        top, left = laid.crop
        assert 0 <= top <= laid.height - height - top <= top + 1
        assert 0 <= left <= laid.width - width - left <= left + 1


@pytest.mark.parametrize(
    ("compression", "num_frames", "latent_frames", "rendered"),
    [
        (COMPRESSIONS["pocket and Wan"], 1, 1, 1),
        (COMPRESSIONS["pocket and Wan"], 2, 2, 5),
        (COMPRESSIONS["pocket and Wan"], 81, 21, 81),
        (COMPRESSIONS["LTX-Video"], 120, 16, 121),
        (COMPRESSIONS["Mochi"], 19, 4, 19),
        (COMPRESSIONS["CogVideoX 1.5"], 1, 2, 5),
        (COMPRESSIONS["CogVideoX 1.5"], 81, 22, 85),
        (COMPRESSIONS["groups of four"], 1, 1, 4),
        (COMPRESSIONS["groups of four in pairs"], 9, 4, 16),
    ],
)
def test_published_frame_counts(compression: Compression, num_frames: int, latent_frames: int, rendered: int) -> None:
    laid = grid(64, 64, num_frames, compression)
    assert (laid.latent_shape[0], laid.num_frames) == (latent_frames, rendered)


def test_published_token_counts() -> None:
    assert grid(832, 480, 81, COMPRESSIONS["pocket and Wan"]).num_tokens == 32_760
    assert grid(1280, 704, 121, COMPRESSIONS["TI2V"]).num_tokens == 27_280
    assert grid(768, 512, 121, COMPRESSIONS["LTX-Video"]).num_tokens == 6_144


def test_crop_frames_keeps_the_middle() -> None:
    laid = grid(333, 257, 3, COMPRESSIONS["pocket and Wan"])  # rendered at 336x272
    rows = torch.arange(laid.height).view(1, -1, 1, 1).expand(2, -1, laid.width, 3)
    columns = torch.arange(laid.width).view(1, 1, -1, 1).expand(2, laid.height, -1, 3)
    cropped = laid.crop_frames(rows), laid.crop_frames(columns)
    assert cropped[0].shape == (2, 257, 333, 3)
    assert (cropped[0].min(), cropped[0].max()) == (7, 263)
    assert (cropped[1].min(), cropped[1].max()) == (1, 333)


def test_strides_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Compression((4, 0, 8), (1, 2, 2))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("patch_size", [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 3)])
def test_unpatchify_undoes_patchify(patch_size: tuple[int, int, int], channels_last: bool) -> None:
    latents = torch.randn(2, 5, 4, 6, 12)
    token_shape = (4 // patch_size[0], 6 // patch_size[1], 12 // patch_size[2])
    tokens = patchify(latents, patch_size, channels_last=channels_last)
    num_tokens = token_shape[0] * token_shape[1] * token_shape[2]
    assert tokens.shape == (2, num_tokens, latents[0].numel() // num_tokens)
    assert torch.equal(unpatchify(tokens, patch_size, token_shape, channels_last=channels_last), latents)


def test_tokens_are_ordered_as_a_convolution_orders_them() -> None:
    latents = torch.randn(2, 5, 4, 6, 8)
    convolution = torch.nn.Conv3d(5, 7, (2, 3, 2), stride=(2, 3, 2))
    expected = convolution(latents).flatten(2).transpose(1, 2)  # [B, N, D]
    tokens = patchify(latents, (2, 3, 2))
    torch.testing.assert_close(tokens @ convolution.weight.flatten(1).T + convolution.bias, expected)


def test_channels_last_puts_the_channels_of_one_latent_side_by_side() -> None:
    latents = torch.randn(1, 5, 1, 4, 4)
    second_token = patchify(latents, (1, 2, 2), channels_last=True)[0, 1]
    assert torch.equal(second_token[:5], latents[0, :, 0, 0, 2])
    assert torch.equal(second_token[5:10], latents[0, :, 0, 0, 3])
