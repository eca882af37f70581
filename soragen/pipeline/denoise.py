"""From noise, a sentence and what is given to the latents of the whole timeline, window after window."""

from __future__ import annotations

import torch
from torch import Tensor

from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.guidance import Denoiser, Scale, doubting, guided, held
from soragen.diffusion.noise import starting_noise
from soragen.diffusion.sampler import denoise
from soragen.diffusion.solver import make_solver
from soragen.diffusion.windows import Window
from soragen.models.family import Context, DoubtingTransformer, ExpertTransformer, RefiningTransformer, Transformer
from soragen.pipeline import drift
from soragen.pipeline.conditions import Conditions, bind, is_native, repeats_of
from soragen.pipeline.events import Listener, Progress
from soragen.pipeline.plan import Plan
from soragen.request import Request


def denoise_windows(
    plan: Plan,
    context: Context,
    negative: Context | None,
    conditions: Conditions,
    source: Tensor | None,
    transformer: Transformer,
    listen: Listener,
) -> Tensor:
    """Latents [1, C, T, H, W] of the whole timeline, on the CPU. source: those it starts from, clean, of the
    video that is restyled or of its own first pass.
    """
    request, device, first_step = plan.request, plan.machine.device, plan.first_step
    noise = starting_noise(request.seed, plan.latent_channels, plan.grid)
    # What a window makes takes the place of its noise, which nobody reads again where known frames are native. Others
    # are mixed with the noise of their place.
    latents = noise if is_native(plan.checkpoint.abilities) else noise.clone()
    is_known = torch.zeros(noise.shape[2], dtype=torch.bool)
    given, cyclic = conditions.known, plan.timeline.num_cyclic
    if given is not None:
        is_known = given.mask.cpu() == 0
        latents[:, :, is_known] = given.latents.cpu()[:, :, is_known].float()
    is_made, steps = ~is_known, plan.num_steps
    told = transformer.told if source is None and isinstance(transformer, DoubtingTransformer) else None
    # Windows go on from frames about as they will be shown; at the end all are refined once more, between their own.
    refine = transformer.refine if source is None and isinstance(transformer, RefiningTransformer) else None
    anchor = drift.find_anchor(plan, is_known, doubts=told is not None)
    bound: tuple[Denoiser, Denoiser | None] | None = None
    for number, window in enumerate(plan.windows):
        known = _known_in(plan, window, latents, is_known)
        if known is None or bool(known.mask.any()):
            if bound is None or conditions.keyframes:  # which move against the window
                bound = _bind(plan, context, negative, conditions, window, transformer)
            denoiser, uncond = guided(*bound, guidance(request, transformer)), bound[1]
            if told is not None:
                denoiser = doubting(denoiser, told)
            start = mixed = noise[:, :, window.frames].to(device)
            if source is not None:
                level = plan.schedule[first_step]
                clean = source[:, :, window.frames].to(start)
                mixed = level.alpha * clean + level.sigma * start
                if request.held:
                    assert uncond is not None
                    denoiser = held(denoiser, uncond, clean, start, request.held)
            solver = make_solver(request.solver, plan.schedule, request.seed + number)
            for step in denoise(
                denoiser, mixed, plan.schedule, solver, known, first_step=first_step, noise=start, seed=request.seed
            ):
                done = number * steps + step.index + 1 - first_step
                listen(Progress("denoise", done, steps * len(plan.windows)))
            latents[:, :, window.new] = step.latents[:, :, window.new_in_window].cpu()
            if anchor is not None and number >= anchor.from_window:
                fresh = ~is_known
                fresh[: window.new_start] = fresh[window.new_stop :] = False
                latents[:, :, fresh] = anchor.pull(latents[:, :, fresh], latents)
            # Where it grows backward the frame before is still to come.
            if refine is not None and window is not plan.windows[-1] and not plan.timeline.grows_backward:
                seen = slice(window.start, window.new_stop)
                shown = refine(latents[:, :, seen].clone(), is_made[seen])
                latents[:, :, window.new] = shown[:, :, window.new_in_window]
        is_known[window.new] = True
        if number == 0 and cyclic:  # only now is it known what the end has to arrive at
            latents[:, :, -cyclic:] = latents[:, :, 1 : 1 + cyclic]
            is_known[-cyclic:] = True
    return latents if refine is None else refine(latents, is_made, cyclic)


def _known_in(plan: Plan, window: Window, latents: Tensor, is_known: Tensor) -> KnownFrames | None:
    """What was given of a window's frames, or made before; None where it makes all of them."""
    free = ~is_known[window.frames]
    if bool(free.all()):
        return None
    device, able = plan.machine.device, plan.checkpoint.abilities
    known = latents[:, :, window.frames].to(device)
    return KnownFrames(known, free.float().to(device), is_native(able), repeats_of(able))


def _bind(
    plan: Plan,
    context: Context,
    negative: Context | None,
    conditions: Conditions,
    window: Window,
    transformer: Transformer,
) -> tuple[Denoiser, Denoiser | None]:
    """What denoises with the prompt, and with the negative one."""
    grid = plan.window_grid
    cond = bind(transformer, context, grid, conditions, window)
    return cond, bind(transformer, negative, grid, conditions, window) if negative is not None else None


def guidance(request: Request, transformer: Transformer) -> Scale:
    """One scale, or that of the expert which takes the step."""
    high, low = request.guidance_scale, request.low_noise_guidance_scale
    if not request.is_guided:
        return 1.0
    if high == low or not isinstance(transformer, ExpertTransformer):
        return high
    return lambda level: high if transformer.is_high(level) else low
