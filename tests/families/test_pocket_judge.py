"""The judge of pocket's clips: what a clip shows against what a sentence asks for."""

import pytest
import torch
from torch import Tensor

from soragen.families.pocket.judge import JudgeConfig, PocketJudge

CONFIG = JudgeConfig(10, 4, 8, text_width=6, num_still=(3, 2), num_moving=(4,))


def judge_that_reads(told: list[list[float]], asked: list[list[float]]) -> PocketJudge:
    """One whose both readings are these logits, whatever it sees."""
    judge = PocketJudge(CONFIG).eval()
    with torch.no_grad():
        for heads, logits in ((judge.still, told[:2]), (judge.moving, told[2:]), (judge.asked, asked)):
            for head, values in zip(heads, logits, strict=True):
                head.get_parameter("weight").zero_()
                head.get_parameter("bias").copy_(torch.tensor(values))
    return judge


def agreement(judge: PocketJudge, frames: int = 5, count: int = 1) -> Tensor:
    torch.manual_seed(0)
    latents = torch.randn(count, 10, frames, 16, 16)
    return judge.agreement(latents, torch.randn(4, 6), torch.ones(4, dtype=torch.bool))


SURE = [[9.0, 0, 0], [0, 9.0], [0, 0, 9.0, 0]]
OTHER = [[0, 9.0, 0], [0, 9.0], [0, 0, 9.0, 0]]
OPEN = [[0.0, 0, 0], [0, 9.0], [0, 0, 9.0, 0]]


def test_a_clip_that_shows_what_is_asked_for_agrees_best() -> None:
    right, wrong = agreement(judge_that_reads(SURE, SURE)), agreement(judge_that_reads(OTHER, SURE))
    assert right > wrong + 5
    assert right <= 0 and right > -0.01


def test_what_the_sentence_leaves_open_does_not_count() -> None:
    one, another = agreement(judge_that_reads(SURE, OPEN)), agreement(judge_that_reads(OTHER, OPEN))
    assert torch.allclose(one, another, atol=1e-5)


def test_a_picture_is_judged_by_what_a_picture_shows() -> None:
    other_motion = [*SURE[:2], [9.0, 0, 0, 0]]
    assert agreement(judge_that_reads(other_motion, SURE), frames=1) > -0.01
    assert agreement(judge_that_reads(other_motion, SURE), frames=5) < -5


@pytest.mark.parametrize(("frames", "height", "width"), [(7, 16, 16), (3, 12, 22), (2, 22, 12), (1, 32, 32)])
def test_any_shape_and_length(frames: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    judge = PocketJudge(CONFIG).eval()
    latents = torch.randn(2, 10, frames, height, width)
    found = judge.agreement(latents, torch.randn(4, 6), torch.ones(4, dtype=torch.bool))
    assert found.shape == (2,) and torch.isfinite(found).all()


def test_it_looks_at_the_coarse_channels_alone() -> None:
    torch.manual_seed(0)
    judge, latents = PocketJudge(CONFIG).eval(), torch.randn(1, 10, 3, 16, 16)
    fine = torch.cat([latents[:, :4], torch.randn(1, 6, 3, 16, 16)], dim=1)
    coarse = torch.cat([torch.randn(1, 4, 3, 16, 16), latents[:, 4:]], dim=1)
    words = torch.randn(4, 6), torch.ones(4, dtype=torch.bool)
    assert torch.equal(judge.agreement(latents, *words), judge.agreement(fine, *words))
    assert not torch.equal(judge.agreement(latents, *words), judge.agreement(coarse, *words))


def test_padding_of_the_sentence_does_not_count() -> None:
    torch.manual_seed(0)
    judge, latents, words = PocketJudge(CONFIG).eval(), torch.randn(1, 10, 3, 16, 16), torch.randn(4, 6)
    mask = torch.tensor([True, True, False, False])
    assert torch.allclose(judge.agreement(latents, words, mask), judge.agreement(latents, words[:2], mask[:2]))


def test_a_config_that_no_judge_has_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        JudgeConfig(width=12)
