"""Weather on rendered frames: fog by distance, and snow that falls through the picture.

Flakes lie in screen space, one (or none) in each cell of a grid whose columns slide down with time. Lengths are in
short sides of the picture, so every size and aspect has as much of it for its area, and a clip that begins later
shows what an earlier one would have come to. The pattern is the same in all scenes, and only how far it has fallen
differs: small flakes that lay anywhere were not learnt (training/LOG.md, 74).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from .motion import Camera
from .palette import Light
from .primitives import Vec3
from .scene import Scene
from .tracer import Window, grid

FOG = 1.3  # optical depth of fog over the distance of the subject
FOG_BEGINS = 0.72  # in distances of the subject: what the sentence names stays to be seen
DULL = {"fog": 0.35, "snowfall": 0.60}  # how far the colours of the sky go to grey
DARK = {"fog": 1.0, "snowfall": 0.60}  # what is left of the sky's light
SUN = {"fog": 0.55, "snowfall": 0.50}


@dataclass(frozen=True)
class Layer:
    """Flakes of one distance. Lengths in short sides, opacity 0..1."""

    cell: float
    radius: float
    opacity: float
    near: bool  # before the subject


LAYERS = (Layer(0.16, 0.018, 0.85, near=False), Layer(0.25, 0.032, 0.95, near=True))
ROWS = 8  # of cells, after which the pattern comes again
SPEED = 1.2  # rows a second: what is near is faster, and all layers have come as far


@cache
def _chance(device: str) -> Tensor:
    """Random numbers in [0, 1), [3, ROWS, 64]: of each cell a place across, a place along, and a size."""
    return torch.rand(3, ROWS, 64, generator=torch.Generator().manual_seed(5)).to(device)


def _grey(rgb: Vec3, share: float, level: float = 1.0) -> Vec3:
    """The colour, a share of the way to grey, at a level of its light."""
    middle = sum(rgb) / 3
    return tuple(level * (c + share * (middle - c)) for c in rgb)  # type: ignore[return-value]


def dull(light: Light, weather: str) -> Light:
    """The light that is left under the weather: no sun, moon or stars, and softer shadows."""
    if weather == "clear":
        return light
    share, level, sun = DULL[weather], DARK[weather], SUN[weather]
    return replace(
        light,
        horizon=_grey(light.horizon, share, level),
        middle=_grey(light.middle, share, level),
        zenith=_grey(light.zenith, share, level),
        cloud_lit=_grey(light.cloud_lit, share, level),
        cloud_dark=_grey(light.cloud_dark, share, level),
        sun=_grey(light.sun, 0.5 * share, sun),
        ambient=_grey(light.ambient, 0.5 * share, 0.5 + 0.5 * level),
        glow=0.0,
        stars=0.0,
        haze=light.haze * 2.0,
        shadow=min(light.shadow, 0.45),
        fill=light.fill + 0.25,
    )


def fog(light: Light, camera: Camera, distance: Tensor, back: Tensor, layer: Tensor) -> tuple[Tensor, Tensor]:
    """Fog over the backdrop [T, 3, H, W] and the subject [T, 4, H, W] (colour times coverage, and coverage), in 0..1.

    distance: from the camera to the subject [T], in which fog is measured, so that it is as thick in every framing.
    """
    height, width = back.shape[-2:]
    u, v = grid(camera, Window(0, height, 0, width), width, height, back.device)
    forward, right, up = (a[:, 1].to(back.device)[:, None, None] for a in (camera.forward, camera.right, camera.up))
    rise = (forward + u * right + v * up) * torch.rsqrt(u * u + v * v + 1.0)  # sine of the elevation of each ray
    away = (camera.origin[:, 1] / distance).to(back.device)[:, None, None]
    on_ground = away / (-rise).clamp_min(1e-3)
    in_sky = 1.0 / rise.clamp_min(0.0).add(0.12)  # fog lies low: less of it towards the zenith
    far = torch.where(rise < 0, on_ground.clamp_max(1.0 / 0.12), in_sky)
    rgb = _grey(tuple(0.7 * h + 0.3 * m for h, m in zip(light.horizon, light.middle, strict=True)), 0.5)  # type: ignore[arg-type]
    colour = torch.tensor(rgb, device=back.device).clamp(0.0, 0.85).pow(1.0 / 2.2)[:, None, None]
    veil = 1.0 - torch.exp((far - FOG_BEGINS).clamp_min(0.0) * -FOG)[:, None]
    thin = 1.0 - math.exp((1.0 - FOG_BEGINS) * -FOG)
    hidden = layer[:, :3] + thin * (colour * layer[:, 3:] - layer[:, :3])
    return back + veil * (colour - back), torch.cat([hidden, layer[:, 3:]], 1)


def snow(scene: Scene, pixels: Tensor, subject: Tensor, seconds: Tensor) -> Tensor:
    """Snow that falls at `seconds` [T] over pixels [T, 3, H, W] in 0..1, the far of it behind the subject.

    subject: its coverage [T, 1, H, W].
    """
    shade = {"day": 1.0, "overcast": 1.0, "sunset": 0.96, "night": 0.74}[scene.time]
    for layer in LAYERS:
        cover = _cover(scene, layer, seconds.to(pixels.device), (pixels.shape[-2], pixels.shape[-1]))[:, None]
        pixels = pixels + (cover if layer.near else cover * (1.0 - subject)) * (shade - pixels)
    return pixels


def _cover(scene: Scene, layer: Layer, seconds: Tensor, size: tuple[int, int]) -> Tensor:
    """How much of each pixel one layer covers, [T, H, W]."""
    pixel = 1.0 / min(size)
    y, x = (((torch.arange(n, device=seconds.device) + 0.5) - 0.5 * n) * pixel for n in size)
    chance = _chance(str(seconds.device))
    across = x[None, :] / layer.cell + 64.0
    column = across.floor()
    fallen = ROWS * scene.rand("phase") + SPEED * seconds[:, None, None]
    along = y[:, None] / layer.cell - fallen + ROWS * (8.0 + chance[0, 0, column.long() % 64])
    row = along.floor()
    dx, dy, size_of = chance[:, row.long() % ROWS, column.long().expand_as(row) % 64]
    radius = layer.radius * (0.75 + 0.5 * size_of)
    room = 2.0 * layer.radius / layer.cell  # its cell's edge must not cut off what is soft
    dx = across - column - room - (1.0 - 2.0 * room) * dx
    dy = along - row - room - (1.0 - 2.0 * room) * dy
    blur = (radius * radius + (0.55 * pixel) ** 2).sqrt() / layer.cell  # nothing is thinner than a pixel, but fainter
    shape = torch.exp((dx * dx + dy * dy) / (blur * blur) * -1.0) * (radius / (layer.cell * blur)) ** 2
    return shape * (layer.opacity * (size_of > 0.25))
