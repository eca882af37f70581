"""Tunes the transformer on what it makes itself: it should show what the sentence asks for, and look like a render.

    python -m training.tune RUN --minutes 60

The flow loss of training.transformer counts squares, and what tells a swaying thing from a still one is few of them.
Here clips are denoised as users' are, from captions alone and in few steps; on the way the clean estimate is shown to
two networks, whose gradients it follows, beside the flow loss on renders, which keeps what is known:
- the judge (training.judge), frozen, says which attributes it sees; they should be those of the scene that the caption
  was written for (Xu et al. 2023, ImageReward, section 3; Clark et al. 2024, DRaFT);
- the critic, which learns meanwhile to tell estimates from renders, looks at patches (Sauer et al. 2023, adversarial
  diffusion distillation).

Goes on from RUN/tune/state.pt where it was stopped, and writes the average of its weights into RUN/transformer.
`torchrun --nproc-per-node 2 -m training.tune` shares the work.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from soragen.catalog import find
from soragen.diffusion.schedule import Schedule, make_schedule
from soragen.families.pocket.transformer import PocketTransformer, TransformerConfig
from soragen.models.config import read_config
from training.clips import SIZES
from training.judge import COARSE, disturb, load_judge, right
from training.precision import autocast
from training.text import Reader, embed, labels, load_encoder
from training.transformer import (
    CLIP_LATENT_FRAMES,
    EMPTY_CAPTION,
    LONG_SIGMA_MEAN,
    MORE_OFTEN,
    SIGMA_STD,
    Clock,
    Pool,
    Team,
    draw_known,
    evaluate,
    flow_loss,
    make_optimizers,
    save,
)
from training.world.captions import caption
from training.world.scene import ATTRIBUTES, Scene, sample_scene

NUM_STEPS, TAKEN = 6, 5
"""Of the schedule, and how many of them a rollout takes: noise levels 1, 0.94, 0.86, 0.75 and 0.6 at pocket's shift."""
CLIPS = 8
"""Rolled out side by side, and estimates of an update."""
CRITICAL = 0.8
"""Noise level from which on the critic does not look: there estimates are blurred as they should be."""
COUNTS = {"subject": 1.0, "colour": 0.3, "motion": 1.5, "ground": 0.3, "time": 0.3, "camera": 1.0}
JUDGE_WEIGHT, CRITIC_WEIGHT, SMOOTHNESS = 0.02, 0.03, 5.0
RATE = 0.2
"""Of the learning rates of training.transformer."""
EMA = 0.985
FLOW_CLIPS = 4

Words = tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]
"""Keys and values, summary and mask, as the transformer takes them."""


class Critic(nn.Module):
    """Render or estimate, patch by patch: convolutions over coarse latents beside their neighbours in time.

    It knows which scene was asked for, and the noise level that the estimate was made at; a render is given one, too.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        w = width
        self.convs = nn.Sequential(
            nn.Conv2d(3 * COARSE + 1, w, 3, 1, 1), nn.SiLU(True),
            nn.Conv2d(w, w, 3, 1, 1), nn.SiLU(True),
            nn.Conv2d(w, 2 * w, 4, 2, 1), nn.SiLU(True),
            nn.Conv2d(2 * w, 2 * w, 3, 1, 1), nn.SiLU(True),
        )  # fmt: skip
        self.out = nn.Conv2d(2 * w, 1, 1)
        self.asked = nn.ModuleList(nn.Embedding(len(values), 2 * w) for values in ATTRIBUTES.values())

    def forward(self, clips: Tensor, truth: Tensor, sigma: Tensor) -> Tensor:
        """Logits [B, T, 8, 8], above 0 for renders, of clips [B, T, K, 16, 16]; truth [B, 6], sigma [B]."""
        before, after = torch.cat([clips[:, :1], clips[:, :-1]], 1), torch.cat([clips[:, 1:], clips[:, -1:]], 1)
        level = sigma.view(-1, 1, 1, 1, 1).expand(-1, clips.shape[1], 1, *clips.shape[3:])
        x = torch.cat([clips, before - clips, after - clips, level], dim=2).flatten(0, 1)
        x = self.convs(x.to(memory_format=torch.channels_last))  #       [B*T, 2w, 8, 8]
        asked = torch.stack([table(truth[:, i]) for i, table in enumerate(self.asked)]).sum(0)  # [B, 2w]
        asked = asked.repeat_interleave(clips.shape[1], 0)[..., None, None] / x.shape[1] ** 0.5
        return (self.out(x) + (x * asked).sum(1, keepdim=True))[:, 0].unflatten(0, clips.shape[:2])


@dataclass
class States:
    """What a rollout went through, one row for each clip and level.

    latents [n, C, T, h, w]: noisy. unguided: the clean estimate without a sentence. sigma [n]. row [n]: whose caption.
    """

    latents: Tensor
    unguided: Tensor
    sigma: Tensor
    row: Tensor

    def batches(self, rng: random.Random, size: int) -> Iterator[States]:
        """All of them, shuffled, `size` at a time."""
        order = list(range(len(self.row)))
        rng.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            yield States(*(getattr(self, field.name)[order[start : start + size]] for field in fields(States)))


class Captions:
    """Those of a rollout, and the empty one, encoded."""

    def __init__(self, read: Reader, captions: list[str], device: str) -> None:
        self.said, self.unsaid = embed(read, captions, device), embed(read, [""], device)

    def words(self, network: PocketTransformer, rows: Tensor) -> Words:
        embeddings, mask = (values[rows] for values in self.said)
        return network.read(embeddings), network.summarise(embeddings, mask), mask

    def no_words(self, network: PocketTransformer, count: int) -> Words:
        embeddings, mask = (values.expand(count, *(-1 for _ in values.shape[1:])) for values in self.unsaid)
        return network.read(embeddings), network.summarise(embeddings, mask), mask


def draw_scenes(rng: random.Random, count: int) -> list[Scene]:
    """Scenes to write captions for; what is learnt last comes more often."""
    drawn = [sample_scene(rng) for _ in range(4 * count)]
    odds = [math.prod(MORE_OFTEN.get(value, 1.0) for value in (s.subject, s.motion, s.camera)) for s in drawn]
    return rng.choices(drawn, odds, k=count)


@torch.no_grad()
def roll_out(
    network: PocketTransformer, captions: Captions, noise: Tensor, schedule: Schedule, guidance: float, clock: Clock
) -> tuple[States, Tensor]:
    """The states of the first TAKEN steps from noise [n, C, T, h, w], by Euler, and the last clean estimate."""
    latents, rows, states = noise, torch.arange(len(noise)), []
    for k in range(TAKEN):
        sigma = torch.full((len(noise), noise.shape[2]), schedule[k].sigma, device=noise.device)
        with autocast(noise.device.type):
            clean = network(latents, sigma, clock(latents), *captions.words(network, rows))
            unguided = network(latents, sigma, clock(latents), *captions.no_words(network, len(rows)))
        states.append(States(latents, unguided, sigma[:, 0], rows))
        estimate = unguided + guidance * (clean - unguided)
        eps = (latents - schedule[k].alpha * estimate) / schedule[k].sigma
        latents = schedule[k + 1].alpha * estimate + schedule[k + 1].sigma * eps
    parts = (torch.cat([getattr(state, field.name) for state in states]) for field in fields(States))
    return States(*parts), estimate


def judged_loss(told: list[Tensor], truth: Tensor) -> Tensor:
    """Cross-entropy of what the judge sees with the truth [B, 6], attributes as much as they count."""
    losses = [F.cross_entropy(each, truth[:, i], label_smoothing=0.05) for i, each in enumerate(told)]
    return torch.stack([COUNTS[name] * loss for name, loss in zip(ATTRIBUTES, losses, strict=True)]).sum()


def mean_of(logits: Tensor, weight: Tensor) -> Tensor:
    """The mean over patches of clips that have the weight 1; 0 where none has."""
    return (logits.flatten(1).mean(1) * weight).sum() / weight.sum().clamp(min=1)


def norm_of(network: nn.Module) -> float:
    return float(torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="of tuning, all runs together")
    parser.add_argument("--judge", type=float, default=JUDGE_WEIGHT, help="weight of the judge's loss")
    parser.add_argument("--critic", type=float, default=CRITIC_WEIGHT, help="weight of the critic's")
    parser.add_argument("--rate", type=float, default=RATE, help="of the learning rates of training.transformer")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "cpu":
        torch.set_num_threads(1)
    team = Team()
    folder, state_path = options.run / "tune", options.run / "tune" / "state.pt"
    folder.mkdir(exist_ok=True)
    tokenizer, encoder = load_encoder(options.run)
    read = (tokenizer, encoder.to(device))
    config = read_config(options.run / "transformer", TransformerConfig)
    network, average = PocketTransformer(config), PocketTransformer(config)
    for each in (network, average):
        each.load_state_dict(load_file(options.run / "transformer" / "model.safetensors"))
        each.to(device)
    network.latent_std.requires_grad_(False)
    average.requires_grad_(False)
    judge = load_judge(options.run).to(device)
    torch.manual_seed(0)
    critic = Critic().to(device)
    optimizers = make_optimizers(network)
    rates = [optimizer.param_groups[0]["lr"] * options.rate for optimizer in optimizers]
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=5e-4, betas=(0.5, 0.98))
    step, turn, seconds = 0, 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        for part, values in zip((network, average, critic), state["networks"], strict=True):
            part.load_state_dict(values)
        for optimizer, values in zip((*optimizers, critic_optimizer), state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        step, turn, seconds = state["step"], state["turn"], state["seconds"]
    pool, held_out = Pool(options.run / "latents", MORE_OFTEN), Pool(options.run / "held_out_latents")
    pool.refresh()
    held_out.refresh()
    clock, defaults = Clock(config, device), find("pocket").defaults
    guidance, whole = defaults.guidance_scale, slice(0, CLIP_LATENT_FRAMES)
    shapes = [(width, height) for width, height, often in SIZES[128] for _ in range(often)]
    # On a CPU the fused attention's backward is three times slower than plain matrix products at these lengths.
    kernel = SDPBackend.MATH if device == "cpu" else SDPBackend.EFFICIENT_ATTENTION
    began, total = time.time(), options.minutes * 60
    while (spent := team.agree(seconds + time.time() - began)) < total:
        width, height = random.Random(turn).choice(shapes)
        rng = random.Random(f"{turn} {team.rank}")
        torch.manual_seed(turn * team.size + team.rank)
        scenes, shown = draw_scenes(rng, options.clips), defaultdict[str, list[float]](list)
        captions = Captions(read, [caption(scene, rng) for scene in scenes], device)
        noise = torch.randn(options.clips, config.latent_channels, CLIP_LATENT_FRAMES, height // 8, width // 8)
        tokens = noise[0, 0].numel() // config.patch_size**2
        schedule = make_schedule(defaults.schedule, NUM_STEPS, defaults.shift, tokens)
        states, made = roll_out(network, captions, noise.to(device), schedule, guidance, clock)
        truths = labels(scenes).to(device)
        with torch.no_grad():
            reached = right(judge(judge.coarse(made)), truths)
        for batch in states.batches(rng, options.clips):
            share = min(1.0, (seconds + time.time() - began) / total)
            truth, looks = truths[batch.row], (batch.sigma < CRITICAL).float()
            with autocast(device), sdpa_kernel(kernel):
                sigma = batch.sigma[:, None].expand(-1, CLIP_LATENT_FRAMES)
                clean = network(batch.latents, sigma, clock(batch.latents), *captions.words(network, batch.row))
            estimate = judge.coarse(batch.unguided + guidance * (clean - batch.unguided))
            told = judge(disturb(estimate))

            # The critic learns.
            latents, mask, real_scenes = pool.draw(rng, "clips", whole, options.clips * tokens)
            latents, mask, real_scenes = latents.to(device), mask.to(device), real_scenes
            real, real_truth = judge.coarse(latents), labels(real_scenes).to(device)
            level = batch.sigma[torch.randint(len(batch.sigma), (len(real),))]
            critic.requires_grad_(True)
            for_real, for_made = critic(real, real_truth, level), critic(estimate.detach(), truth, batch.sigma)
            near = critic(real + 0.1 * torch.randn_like(real), real_truth, level)
            critic_loss = F.relu(1 - for_real).mean() + mean_of(F.relu(1 + for_made), looks)
            critic_optimizer.zero_grad()
            (critic_loss + SMOOTHNESS * (near - for_real).square().mean()).backward()
            team.average_gradients(critic)
            critic_optimizer.step()
            critic.requires_grad_(False)

            # The transformer follows both, and keeps to the renders.
            losses = {
                "judge": options.judge * judged_loss(told, truth),
                "critic": -options.critic * mean_of(critic(estimate, truth, batch.sigma), looks),
            }
            if step % 2 == 0:
                latents, mask, real_scenes = latents[:FLOW_CLIPS], mask[:FLOW_CLIPS], real_scenes[:FLOW_CLIPS]
                texts = ["" if rng.random() < EMPTY_CAPTION else caption(scene, rng) for scene in real_scenes]
                free = torch.tensor([draw_known(rng, CLIP_LATENT_FRAMES, 0) for _ in texts], device=device)
                sigma = torch.sigmoid(LONG_SIGMA_MEAN + SIGMA_STD * torch.randn(len(texts))).clamp(0.02, 0.9999)
                drawn = torch.randn(latents.shape).to(device)
                context = embed(read, texts, device)
                flow = flow_loss(network, latents, mask, sigma.to(device), drawn, free, clock(latents), context)
                losses["flow"] = 2 * flow.mean()
            for optimizer, base in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = base * min(1.0, (step + 1) / 10) * min(1.0, (1 - share) / 0.3 + 0.02)
                optimizer.zero_grad()
            if step % 20 == 0:  # how much each of them pulls
                for name, loss in losses.items():
                    loss.backward(retain_graph=True)
                    shown[f"pull of {name}"].append(norm_of(network))
                    network.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            team.average_gradients(network)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            keep = min(EMA, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(value, 1 - keep)
            step += 1
            answers = right(told, truth)
            for name, number in (
                *((name, float(loss.detach())) for name, loss in losses.items()),
                ("real", float(for_real.detach().mean())), ("made", float(mean_of(for_made.detach(), looks))),
                *((f"{name} right", answers[name]) for name in ("subject", "motion", "camera")),
            ):  # fmt: skip
                shown[name].append(number)
        turn += 1
        if team.rank == 0:
            means = " ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in shown.items())
            ends = " ".join(f"{name} {value:.2f}" for name, value in reached.items())
            print(f"turn {turn} step {step} {spent / 60:.1f} min {means}; reached: {ends}", flush=True)
            spent = seconds + time.time() - began
            if turn % 8 == 0:
                print(f"held out {evaluate(average, held_out, clock, read, device, 2)}", flush=True)
            if turn % 4 == 0 or spent >= total:
                state = {
                    "networks": [each.state_dict() for each in (network, average, critic)],
                    "optimizers": [each.state_dict() for each in (*optimizers, critic_optimizer)],
                    "step": step, "turn": turn, "seconds": spent,
                }  # fmt: skip
                torch.save(state, state_path.with_suffix(".part"))
                state_path.with_suffix(".part").rename(state_path)
                save(average, options.run / "transformer")


if __name__ == "__main__":
    main()
