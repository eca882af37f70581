"""Weather on rendered frames: fog by distance, and rain and snowfall that fall through the picture.

What falls lies in screen space, one thing (or none) in each cell of a sheared grid whose columns slide down with time.
Lengths are in short sides of the picture, so every size and aspect has as much of it for its area, and a clip that
begins later shows what an earlier one would have come to.
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
SLANT = 0.16  # sideways over down; all rain slants one way, see `Scene.is_handed`
DULL = {"fog": 0.35, "rain": 0.60, "snowfall": 0.60}  # how far the colours of the sky go to grey
DARK = {"fog": 1.0, "rain": 0.52, "snowfall": 0.60}  # what is left of the sky's light
SUN = {"fog": 0.55, "rain": 0.40, "snowfall": 0.50}


@dataclass(frozen=True)
class Layer:
    """Things of one distance. Lengths in short sides, speed in short sides a second, opacity 0..1."""

    cell: tuple[float, float]  # width and height
    half: tuple[float, float]  # across and along
    speed: float
    opacity: float
    near: bool  # before the subject


LAYERS = {
    "rain": (
        Layer((0.050, 0.17), (0.0026, 0.040), 1.1, 0.50, near=False),
        Layer((0.075, 0.25), (0.0034, 0.060), 1.5, 0.60, near=True),
        Layer((0.150, 0.44), (0.0048, 0.100), 2.0, 0.65, near=True),
    ),
    "snowfall": (
        Layer((0.072, 0.072), (0.0060, 0.0060), 0.14, 0.85, near=False),
        Layer((0.110, 0.110), (0.0100, 0.0100), 0.21, 0.95, near=True),
        Layer((0.230, 0.230), (0.0180, 0.0180), 0.32, 0.90, near=True),
    ),
}


@cache
def _chance(device: str) -> Tensor:
    """Random numbers in [0, 1), [4, 64, 64]: of each cell its place across, its place along, a size, and a phase."""
    return torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(5)).to(device)


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


def falling(scene: Scene, pixels: Tensor, subject: Tensor, seconds: Tensor) -> Tensor:
    """Rain or snow at `seconds` [T] over pixels [T, 3, H, W] in 0..1, the far of it behind the subject.

    subject: its coverage [T, 1, H, W].
    """
    shade = {"day": 1.0, "overcast": 1.0, "sunset": 0.96, "night": 0.74}[scene.time]
    white = (0.80, 0.86, 0.94) if scene.weather == "rain" else (1.0, 1.0, 1.0)
    colour = (torch.tensor(white, device=pixels.device) * shade)[:, None, None]
    for number, layer in enumerate(LAYERS[scene.weather]):
        cover = _cover(scene, layer, number, seconds.to(pixels.device), (pixels.shape[-2], pixels.shape[-1]))[:, None]
        pixels = pixels + (cover if layer.near else cover * (1.0 - subject)) * (colour - pixels)
    return pixels


def _cover(scene: Scene, layer: Layer, number: int, seconds: Tensor, size: tuple[int, int]) -> Tensor:
    """How much of each pixel one layer covers, [T, H, W]."""
    rain, device = scene.weather == "rain", seconds.device
    pixel = 1.0 / min(size)
    y, x = (((torch.arange(n, device=device) + 0.5) - 0.5 * n) * pixel for n in size)
    chance = _chance(str(device))
    place = 64.0 * scene.rand("phase") + 17.3 * number
    across = (x[None, :] + (SLANT if rain else 0.0) * y[:, None]) / layer.cell[0] + 64.0 + place
    column = across.floor()
    own = chance[:, int(place) % 64, column.long() % 64]  # each column has a height and a speed of its own
    fallen = layer.speed * (0.85 + 0.3 * own[0]) * seconds[:, None, None]
    along = (y[:, None] - fallen) / layer.cell[1] + 64.0 * own[1]
    row = along.floor()
    cell = chance[:, row.long() % 64, column.long().expand_as(row) % 64]
    sway = 0.0 if rain else 0.13 * torch.sin((0.35 * seconds[:, None, None] + cell[3]) * (2 * math.pi))
    dx = (across - column - 0.35 - 0.3 * cell[0] - sway) * layer.cell[0]
    reach = (1.0 if rain else 2.5) * layer.half[1] / layer.cell[1]  # its cell's edge must not cut off what is soft
    dy = (along - row - reach - (1.0 - 2.0 * reach) * cell[1]) * layer.cell[1]
    bigger = 0.75 + 0.5 * cell[2]
    wide = layer.half[0] * bigger
    blur = (wide * wide + (0.55 * pixel) ** 2).sqrt()  # nothing is thinner than a pixel, but fainter
    if rain:
        shape = (1.0 - (dy / layer.half[1]) ** 2).clamp_min(0.0) * torch.exp(-((dx / blur) ** 2)) * (wide / blur)
    else:
        shape = torch.exp((dx * dx + dy * dy) / (blur * blur) * -1.0) * (wide / blur) ** 2
    return shape * (layer.opacity * (cell[2] > 0.25))
