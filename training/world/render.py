"""Renders scenes to clips. Sky and ground are shaded once per pixel (they filter themselves); the subject and its
shadow are traced on a finer grid and averaged down."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .backdrop import Backdrop
from .motion import TAN_HALF_SHORT, Camera, Pose, mirrored, place
from .palette import light as light_of
from .palette import main_colour
from .scene import Scene
from .subjects import subject as subject_of
from .tracer import Tracer, Window, grid
from .weather import dull, fog, snow

_CPU_CHUNK = 1 << 17  # rays at a time: keeps the working set inside the processor's cache
_DEVICE_CHUNK = 1 << 23


def _span(low: int, high: int, fine: int, size: int) -> tuple[int, int, int, int]:
    """Widen [low, high) of a fine axis to whole groups of pixels that average to whole pixels of the coarse axis:
    fine start and end, coarse start and end."""
    common = math.gcd(fine, size)
    many, few = fine // common, size // common
    first, last = low // many, -(-high // many)
    return first * many, last * many, first * few, last * few


def _reduce(window: Window, values: Tensor, fine: tuple[int, int], size: tuple[int, int], fill: float) -> Tensor:
    """Values of a window of the fine grid [T, C, h, w], averaged to the whole image [T, C, height, width]."""
    frames, channels = values.shape[:2]
    out = values.new_full((frames, channels, *size), fill)
    if window.empty:
        return out
    if fine == size:
        out[:, :, window.top : window.bottom, window.left : window.right] = values
        return out
    y0, y1, top, bottom = _span(window.top, window.bottom, fine[0], size[0])
    x0, x1, left, right = _span(window.left, window.right, fine[1], size[1])
    pad = (window.left - x0, x1 - window.right, window.top - y0, y1 - window.bottom)
    whole = F.pad(values, pad, value=fill)
    out[:, :, top:bottom, left:right] = F.interpolate(whole, size=(bottom - top, right - left), mode="area")
    return out


def _display(linear: Tensor) -> Tensor:
    """Linear light to display values 0..1: a soft shoulder above 0.7, then gamma."""
    over = (linear - 0.7).clamp_min_(0.0)
    x = linear.clamp(0.0, 0.7) + 0.3 * over / (over + 0.3)
    return x.pow_(1.0 / 2.2)


def _backdrop(
    scene: Scene,
    painter: Backdrop,
    camera: Camera,
    shadow: Tensor,
    seconds: Tensor,
    size: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Sky and ground of a chunk of frames, linear RGB [T, 3, height, width]. shadow is [T, 1, height, width]."""
    height, width = size
    frames = len(seconds)
    u, v = grid(camera, Window(0, height, 0, width), width, height, device)
    # The camera never rolls, so the horizon is a row: above it only sky, below it only ground, on it both.
    rows = (camera.forward[:, 1] / camera.up[:, 1] / camera.tan_y + 1.0) * 0.5 * height
    first = min(max(int(rows.min()) - 1, 0), height)  # ground may start here
    last = min(max(int(rows.max()) + 2, 0), height)  # sky ends here
    out = torch.empty(frames, 3, height, width, device=device)
    forward, right, up = (a.to(device)[:, :, None, None] for a in (camera.forward, camera.right, camera.up))
    origin = camera.origin.to(device)[:, :, None, None]
    clock = seconds.to(device)[:, None, None]

    def rays(top: int, bottom: int) -> tuple[list[Tensor], Tensor]:
        vv = v[top:bottom]
        d = [forward[:, i] + u * right[:, i] + vv * up[:, i] for i in range(3)]
        inv = torch.rsqrt(u * u + vv * vv + 1.0)
        return [c * inv for c in d], inv

    if last > 0:
        d, _ = rays(0, last)
        for i, c in enumerate(painter.sky(tuple(d), clock)):  # type: ignore[arg-type]
            out[:, i, :last] = c
    if first < height:
        d, _ = rays(first, height)
        far = (-origin[:, 1] / d[1].clamp(max=-2e-3)).clamp_max_(400.0)
        x, z = origin[:, 0] + far * d[0], origin[:, 2] + far * d[2]
        rgb = painter.ground(x, z, tuple(d), far, shadow[:, 0, first:], clock)  # type: ignore[arg-type]
        cover = (d[1] * (-1.0 / painter.pixel) + 0.5).clamp_(0.0, 1.0)
        for i, c in enumerate(rgb):
            part = out[:, i, first:]
            seam = last - first
            if seam > 0:
                part[:, :seam] += cover[:, :seam] * (c[:, :seam] - part[:, :seam])
            part[:, max(seam, 0) :] = c[:, max(seam, 0) :]
    return out


def _mirror_image(scene: Scene, tracer: Tracer, seconds: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Reflection of the subject in water or a polished floor: display colour and coverage [T, 4, height, width]."""
    strength = {"ocean": 0.55, "checker": 0.16}.get(scene.ground)
    if strength is None:
        return None
    height, width = size
    window, colour, cover = tracer.image(width, height)
    layer = _reduce(window, torch.cat([_display(colour), cover], 1), size, size, 0.0)
    if scene.ground == "ocean":  # waves shake it sideways, more so lower in the image (nearer)
        device = layer.device
        y = torch.linspace(-1.0, 1.0, height, device=device)[None, :, None]
        x = torch.linspace(-1.0, 1.0, width, device=device)[None, None, :]
        clock = seconds.to(device)[:, None, None]
        shake = 0.016 * torch.sin(38.0 * y + 5.0 * x - 4.0 * clock) + 0.010 * torch.sin(
            67.0 * y - 9.0 * x - 6.0 * clock
        )
        warp = torch.stack([x + shake, (y + 0.4 * shake).expand_as(shake)], -1)
        layer = F.grid_sample(layer, warp, mode="bilinear", align_corners=True)
    return layer * strength


def _clip(
    scene: Scene,
    seconds: Tensor,
    size: tuple[int, int],
    fine: tuple[int, int],
    device: torch.device,
    frames_out: Tensor,
    mask_out: Tensor,
) -> None:
    """Render one scene into frames_out [T, H, W, 3] and mask_out [T, H, W] (uint8)."""
    height, width = size
    aspect = width / height
    thing = subject_of(scene.subject)
    light, main = dull(light_of(scene), scene.weather), main_colour(scene)
    pose, camera = place(scene, seconds, thing, aspect)
    painter = Backdrop(scene, light, 2.0 * TAN_HALF_SHORT / min(height, width))
    budget = _CPU_CHUNK if device.type == "cpu" else _DEVICE_CHUNK
    step = max(budget // (fine[0] * fine[1]), 1)
    for start in range(0, len(seconds), step):
        part = slice(start, start + step)
        here = Camera(
            camera.origin[part], camera.right[part], camera.up[part], camera.forward[part], camera.tan_x, camera.tan_y
        )
        tracer = Tracer(scene, thing, light, main, Pose(pose.linear[part], pose.position[part]), here, device)
        window, values = tracer.shadow(fine[1], fine[0])
        shadow = _reduce(window, values, fine, size, 1.0)
        shadow = F.avg_pool2d(F.pad(shadow, (1, 1, 1, 1), mode="replicate"), 3, 1)  # a narrow penumbra
        back = _display(_backdrop(scene, painter, here, shadow, seconds[part], size, device))
        below = Tracer(scene, thing, light, main, tracer.pose, mirrored(here), device, self_shadow=False)
        reflection = _mirror_image(scene, below, seconds[part], size)
        if reflection is not None:
            back = back * (1.0 - reflection[:, 3:]) + reflection[:, :3]
        window, colour, cover = tracer.image(fine[1], fine[0])
        layer = _reduce(window, torch.cat([_display(colour), cover], 1), fine, size, 0.0)
        alpha = layer[:, 3:]
        if scene.weather == "fog":
            distance = torch.linalg.vector_norm(here.origin - tracer.pose.position, dim=1)
            back, layer = fog(light, here, distance, back, layer)
        pixels = back * (1.0 - alpha) + layer[:, :3]
        if scene.weather == "snowfall":
            pixels = snow(scene, pixels, alpha, seconds[part])
        frames_out[part] = (pixels.clamp_(0.0, 1.0) * 255.0).round_().to(torch.uint8).permute(0, 2, 3, 1)
        mask_out[part] = (alpha[:, 0] * 255.0).round_().to(torch.uint8)


@torch.no_grad()
def render(
    scenes: Sequence[Scene],
    *,
    width: int,
    height: int,
    num_frames: int,
    fps: float,
    start_seconds: float = 0.0,
    supersample: float = 1.5,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Render B scenes with one common subject.

    Returns frames uint8 [B, T, H, W, 3] and the subject's coverage uint8 [B, T, H, W] (0..255) on `device`.
    """
    if len({scene.subject for scene in scenes}) > 1:
        raise ValueError("all scenes of one call must have the same subject")
    place_on = torch.device(device)
    size = (height, width)
    fine = (max(round(height * supersample), height), max(round(width * supersample), width))
    seconds = start_seconds + torch.arange(num_frames, dtype=torch.float32) / fps
    frames = torch.empty(len(scenes), num_frames, height, width, 3, dtype=torch.uint8, device=place_on)
    mask = torch.empty(len(scenes), num_frames, height, width, dtype=torch.uint8, device=place_on)
    for i, scene in enumerate(scenes):
        _clip(scene, seconds, size, fine, place_on, frames[i], mask[i])
    return frames, mask
