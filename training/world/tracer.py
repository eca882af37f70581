"""Traces one subject for a chunk of frames: colour and coverage images, and its shadow on the ground."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .backdrop import smoothstep
from .motion import Camera, Pose, project
from .palette import GROUND_RGB, Light
from .primitives import INF, Vec, Vec3, dot, slab_span, unit
from .scene import Scene
from .subjects import Part, Subject


@dataclass
class Window:
    """A rectangle of the image grid: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def empty(self) -> bool:
        return self.bottom <= self.top or self.right <= self.left


def window_of(camera: Camera, points: Tensor, width: int, height: int, margin: int = 2) -> Window:
    """Smallest rectangle of a width x height grid that holds world points [T, K, 3] in every frame."""
    x, y, depth = project(camera, points)
    if float(depth.min()) < 0.05:
        return Window(0, height, 0, width)
    left = math.floor((float(x.min()) + 1) * 0.5 * width) - margin
    right = math.ceil((float(x.max()) + 1) * 0.5 * width) + margin
    top = math.floor((1 - float(y.max())) * 0.5 * height) - margin
    bottom = math.ceil((1 - float(y.min())) * 0.5 * height) + margin
    return Window(max(top, 0), min(bottom, height), max(left, 0), min(right, width))


def grid(camera: Camera, window: Window, width: int, height: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel centres as u [1, w] and v [h, 1] of Camera.direction."""
    column = torch.arange(window.left, window.right, device=device, dtype=torch.float32)
    row = torch.arange(window.top, window.bottom, device=device, dtype=torch.float32)
    u = ((column + 0.5) * (2.0 / width) - 1.0) * camera.tan_x
    v = (1.0 - (row + 0.5) * (2.0 / height)) * camera.tan_y
    return u[None, :], v[:, None]


def nearest(parts: tuple[Part, ...], o: Vec, d: Vec) -> tuple[Tensor, Tensor]:
    """Nearest entry over all parts: ray parameter (inf = miss) and part number, each [M]."""
    best = torch.full_like(d[0], INF)
    number = torch.zeros(d[0].shape, dtype=torch.int32, device=d[0].device)
    for i, part in enumerate(parts):
        t = part.solid.intersect(o, d)
        number.masked_fill_(t < best, i)
        best = torch.minimum(best, t)
    return best, number


def blocked(parts: tuple[Part, ...], o: Vec, d: Vec) -> Tensor:
    """True where any shadow-casting part lies on the ray, [M]."""
    hit = torch.zeros(d[0].shape, dtype=torch.bool, device=d[0].device)
    for part in parts:
        if part.shadow:
            hit |= part.solid.intersect(o, d) < INF
    return hit


def near_bound(subject: Subject, o: Vec, d: Vec) -> Tensor:
    """True where the line passes through both the subject's bounding ellipsoid and its bounding box."""
    r, c = subject.radii, subject.centre
    o = (o[0] - c[0], o[1] - c[1], o[2] - c[2])
    q = (o[0] * (1 / r[0]), o[1] * (1 / r[1]), o[2] * (1 / r[2]))
    e = (d[0] * (1 / r[0]), d[1] * (1 / r[1]), d[2] * (1 / r[2]))
    a, b, k = dot(e, e), dot(q, e), dot(q, q) - 1.0
    enter, leave = slab_span(subject.half, o, d)
    return (b * b > a * k) & (enter < leave)


def paint(part: Part, p: Vec, n: Vec, main: Vec3) -> tuple[list[Tensor], Tensor | float]:
    """Albedo of surface points of one part (subject frame) and a factor on its glow."""
    base = part.rgb if part.rgb is not None else main
    rgb: list[Tensor] = [torch.full_like(p[0], c * part.shade) for c in base]

    def blend(colour: Vec3 | float, where: Tensor) -> list[Tensor]:
        """Towards a fixed colour, or towards the same colour times a number, by a weight or mask."""
        w = where.to(p[0].dtype)
        if isinstance(colour, tuple):
            return [c + w * (k - c) for c, k in zip(rgb, colour, strict=True)]
        return [c * (1.0 + w * (colour - 1.0)) for c in rgb]

    pattern = part.pattern
    if pattern == "wedges":  # a beach ball: without them a turning ball would look still
        a = torch.atan2(p[2], p[0])
        rgb = blend(0.55, smoothstep(-0.12, 0.12, torch.sin(a * 3.0)))
        rgb = blend(0.55, p[1] > 0.93)
    elif pattern == "frame":
        edge = torch.stack([(p[0] / 0.4).abs(), ((p[1] - 0.4) / 0.4).abs(), (p[2] / 0.4).abs()])
        rgb = blend(0.66, edge.sort(0).values[1] > 0.80)
    elif pattern == "spiral":
        a = torch.atan2(p[2], p[0])
        rgb = blend(0.52, smoothstep(-0.15, 0.15, torch.sin(a * 2.0 + p[1] * 9.0)))
    elif pattern == "leaves":
        lump = torch.sin(p[0] * 31.0 + 2 * torch.sin(p[1] * 23.0)) * torch.sin(p[2] * 29.0 + p[1] * 27.0)
        rgb = blend(0.72, smoothstep(-0.2, 0.6, lump))
    elif pattern in ("panes", "panes_side"):
        q = p[0].abs() - 0.24 if pattern == "panes" else p[2]
        frame = (q.abs() < 0.012) | ((p[1] - 0.28).abs() < 0.012) | ((p[1] - 0.28).abs() > 0.066) | (q.abs() > 0.072)
        return blend((0.8, 0.8, 0.78), frame), (~frame).float()
    elif pattern == "wheel":
        x = torch.where(p[0] > 0, p[0] - 0.33, p[0] + 0.34)
        r2 = x * x + (p[1] - 0.13) ** 2
        rgb = blend((0.45, 0.46, 0.48), (r2 < 0.075**2) & (n[2].abs() > 0.9))
    elif pattern == "hull":
        rgb = blend((0.80, 0.80, 0.78), (p[1] > 0.215) & (p[1] < 0.255))
    elif pattern == "sail":
        rgb = blend((0.16, 0.13, 0.10), ((p[1] - 0.60).abs() < 0.012) | ((p[1] - 0.80).abs() < 0.012))
    elif pattern == "nose":
        rgb = blend((0.75, 0.76, 0.78), p[1] > 0.90)
    elif pattern == "chest":
        panel = (p[0].abs() < 0.12) & ((p[1] - 0.48).abs() < 0.09) & (n[2] > 0.5)
        rgb = blend((0.55, 0.57, 0.6), panel)
        rgb = blend((0.03, 0.03, 0.04), panel & ((p[1] - 0.44).abs() < 0.012) & (p[0].abs() < 0.09))
    elif pattern == "spots":
        a = torch.atan2(p[2], p[0])
        up = (p[1] - 0.46) / 0.46
        # a row of spots around the rim, a row above it, one on top
        rim = _spot(a, up, 0.26, 7, 0.0, 0.165)
        row = _spot(a, up, 0.66, 5, 0.5, 0.165)
        rgb = blend((0.88, 0.85, 0.80), rim | row | (up > 0.965))
    elif pattern == "band":
        rgb = blend((0.55, 0.02, 0.02), p[1] < 0.925)
    return rgb, 1.0


def _spot(angle: Tensor, up: Tensor, level: float, count: int, turn: float, radius: float) -> Tensor:
    """Round spots on a unit dome: `count` of them around the sine of elevation `level`."""
    step = 2 * math.pi / count
    a = torch.remainder(angle + turn * step, step) - 0.5 * step
    elevation, middle = torch.asin(up.clamp(-1.0, 1.0)), math.asin(level)
    return (a * math.cos(middle)) ** 2 + (elevation - middle) ** 2 < radius**2


class Tracer:
    """Renders the subject of one scene over one chunk of frames."""

    def __init__(
        self,
        scene: Scene,
        subject: Subject,
        light: Light,
        main: Vec3,
        pose: Pose,
        camera: Camera,
        device: torch.device,
        self_shadow: bool = True,
    ) -> None:
        self.self_shadow = self_shadow
        self.scene, self.subject, self.light, self.main = scene, subject, light, main
        self.pose, self.camera, self.device = pose, camera, device
        inverse = torch.linalg.inv(pose.linear)
        self.inverse = inverse
        self.origin = torch.einsum(
            "tij,tj->ti", inverse, camera.origin - pose.position
        )  # camera in the subject's frame
        self.axes = [torch.einsum("tij,tj->ti", inverse, a) for a in (camera.forward, camera.right, camera.up)]
        toward = torch.tensor(light.direction)
        self.sun = torch.einsum("tij,j->ti", inverse, toward)
        self.hull = torch.einsum("tij,kj->tki", pose.linear, subject.hull) + pose.position[:, None]

    def _to(self, value: Tensor) -> Tensor:
        return value.to(self.device, non_blocking=True)

    def image(self, width: int, height: int) -> tuple[Window, Tensor, Tensor]:
        """Linear colour times coverage [T, 3, h, w] and coverage [T, 1, h, w] inside a window of the grid."""
        window = window_of(self.camera, self.hull, width, height)
        frames = len(self.origin)
        h, w = max(window.bottom - window.top, 0), max(window.right - window.left, 0)
        colour = torch.zeros(frames, 3, h * w, device=self.device)
        cover = torch.zeros(frames, 1, h * w, device=self.device)
        if window.empty:
            return window, colour.view(frames, 3, h, w), cover.view(frames, 1, h, w)
        u, v = grid(self.camera, window, width, height, self.device)
        forward, right, up = (self._to(a)[:, :, None, None] for a in self.axes)
        d = tuple(forward[:, i] + u * right[:, i] + v * up[:, i] for i in range(3))
        start = self._to(self.origin)
        o = tuple(start[:, i, None, None] for i in range(3))
        frame, pixel = near_bound(self.subject, o, d).view(frames, h * w).nonzero(as_tuple=True)  # type: ignore[arg-type]
        flat = frame * (h * w) + pixel
        d = tuple(c.reshape(-1)[flat] for c in d)
        o = tuple(start[:, i][frame] for i in range(3))
        t, number = nearest(self.subject.parts, o, d)  # type: ignore[arg-type]
        linear, position = self._to(self.pose.linear), self._to(self.pose.position)
        p = tuple(a + t.nan_to_num(posinf=0.0) * b for a, b in zip(o, d, strict=True))
        row = linear[:, 1][frame]
        level = row[:, 0] * p[0] + row[:, 1] * p[1] + row[:, 2] * p[2] + position[:, 1][frame]
        hit = ((t < INF) & (level > -1e-3)).nonzero(as_tuple=True)[0]  # what lies under the ground does not show
        if len(hit) == 0:
            return window, colour.view(frames, 3, h, w), cover.view(frames, 1, h, w)
        frame, pixel, number, level = frame[hit], pixel[hit], number[hit], level[hit]
        p = tuple(c[hit] for c in p)
        d = tuple(c[hit] for c in d)
        rgb = self._shade(p, d, frame, number, level)  # type: ignore[arg-type]
        cover[frame, 0, pixel] = 1.0
        for i in range(3):
            colour[frame, i, pixel] = rgb[i]
        return window, colour.view(frames, 3, h, w), cover.view(frames, 1, h, w)

    def _shade(self, p: Vec, d: Vec, frame: Tensor, number: Tensor, level: Tensor) -> list[Tensor]:
        """Linear colour of surface points (subject frame), [M] each."""
        light = self.light
        normal = [torch.empty_like(level) for _ in range(3)]
        albedo = [torch.empty_like(level) for _ in range(3)]
        gloss, glow = torch.empty_like(level), torch.empty_like(level)
        for i, part in enumerate(self.subject.parts):
            mine = (number == i).nonzero(as_tuple=True)[0]
            if len(mine) == 0:
                continue
            q = tuple(c[mine] for c in p)
            n = part.solid.normal(q)  # type: ignore[arg-type]
            rgb, lamp = paint(part, q, n, self.main)  # type: ignore[arg-type]
            for k in range(3):
                normal[k][mine] = n[k]
                albedo[k][mine] = rgb[k]
            gloss[mine] = part.gloss
            glow[mine] = part.glow * lamp
        # shadow test in the subject's frame, started a little off the surface
        sun = self._to(self.sun)[frame].unbind(-1)
        lift = tuple(a + 4e-3 * b for a, b in zip(p, normal, strict=True))
        facing = dot(tuple(normal), sun) > 0  # type: ignore[arg-type]
        lit = torch.zeros_like(level)
        front = facing.nonzero(as_tuple=True)[0]
        if self.self_shadow:
            start, ray = tuple(c[front] for c in lift), tuple(c[front] for c in sun)
            lit[front] = (~blocked(self.subject.parts, start, ray)).float()  # type: ignore[arg-type]
        else:
            lit[front] = 1.0
        # normals and view directions to the world frame
        back = self._to(self.inverse)[frame]
        turned = [
            dot((back[:, 0, k], back[:, 1, k], back[:, 2, k]), (normal[0], normal[1], normal[2])) for k in range(3)
        ]
        n = unit((turned[0], turned[1], turned[2]))
        ahead = self._to(self.pose.linear)[frame]
        view = unit(tuple(-(ahead[:, k, 0] * d[0] + ahead[:, k, 1] * d[1] + ahead[:, k, 2] * d[2]) for k in range(3)))  # type: ignore[arg-type]
        key = light.direction
        half = unit(tuple(view[k] + key[k] for k in range(3)))  # type: ignore[arg-type]
        lambert = (n[0] * key[0] + n[1] * key[1] + n[2] * key[2]).clamp_min_(0.0)
        lit = lit * light.shadow + (1.0 - light.shadow) if light.shadow < 0.5 else lit
        direct = lambert * lit
        shine = dot(n, half).clamp_min_(0.0) ** 2
        shine = (shine * shine) ** 2
        shine = (shine * shine) ** 2 * gloss * lit  # (n . h)^32
        rim = (1.0 - dot(n, view).clamp(0.0, 1.0)) ** 3
        above = 0.5 + 0.5 * n[1]
        near_ground = 0.62 + 0.38 * smoothstep(0.0, 0.30, level)
        ground = GROUND_RGB[self.scene.ground]
        out = []
        for k in range(3):
            up_light = ground[k] * (light.sun[k] * key[1] + light.ambient[k]) * light.bounce + 0.30 * light.ambient[k]
            ambient = (up_light + above * (light.ambient[k] * 1.05 - up_light)) * near_ground
            ambient = ambient * (1.0 + light.fill)
            c = albedo[k] * (direct * light.sun[k] + ambient + glow)
            sheen = rim * (0.05 + 0.12 * gloss) * (light.horizon[k] + light.middle[k]) * near_ground
            out.append(c + shine * (0.75 * light.sun[k]) + sheen)
        return out

    def shadow(self, width: int, height: int) -> tuple[Window, Tensor]:
        """Light that reaches the ground, 1 = all: the cast shadow times a soft contact shadow, [T, 1, h, w]."""
        key = torch.tensor(self.light.direction)
        length = self.hull[..., 1:2].clamp_min(0.0) / key[1].clamp_min(0.2)
        cast = self.hull - key * length
        foot = self.hull * torch.tensor([1.0, 0.0, 1.0])
        spread = torch.cat([cast, foot + 0.12 * (foot - foot.mean(1, keepdim=True))], 1)
        spread = spread * torch.tensor([1.0, 0.0, 1.0])
        window = window_of(self.camera, spread, width, height)
        frames = len(self.origin)
        h, w = max(window.bottom - window.top, 0), max(window.right - window.left, 0)
        if window.empty:
            return window, torch.ones(frames, 1, h, w, device=self.device)
        u, v = grid(self.camera, window, width, height, self.device)
        forward, right, up = (
            self._to(a)[:, :, None, None] for a in (self.camera.forward, self.camera.right, self.camera.up)
        )
        origin = self._to(self.camera.origin)[:, :, None, None]
        dy = (forward[:, 1] + v * up[:, 1] + u * right[:, 1]).clamp(max=-1e-3)
        t = -origin[:, 1] / dy
        gx = origin[:, 0] + t * (forward[:, 0] + u * right[:, 0] + v * up[:, 0])
        gz = origin[:, 2] + t * (forward[:, 2] + u * right[:, 2] + v * up[:, 2])
        # the soft part: an ellipse under the subject that fades as it lifts off
        low, high = self.hull.min(1).values, self.hull.max(1).values
        middle, half = (low + high) / 2, (high - low) / 2
        bottom = (low[:, 1]).clamp_min(0.0)
        reach = [self._to(half[:, k] * 0.80 + 0.06 + 0.3 * bottom)[:, None, None] for k in (0, 2)]
        dx = (gx - self._to(middle[:, 0])[:, None, None]) / reach[0]
        dz = (gz - self._to(middle[:, 2])[:, None, None]) / reach[1]
        strength = self._to(0.62 / (1.0 + 5.0 * bottom))[:, None, None]
        soft = 1.0 - strength * torch.exp((dx * dx + dz * dz) * -1.3)
        inverse, position = self._to(self.inverse), self._to(self.pose.position)
        rel_x, rel_y, rel_z = (
            gx - position[:, 0, None, None],
            -position[:, 1, None, None],
            gz - position[:, 2, None, None],
        )
        o = tuple(
            inverse[:, i, 0, None, None] * rel_x
            + inverse[:, i, 1, None, None] * rel_y
            + inverse[:, i, 2, None, None] * rel_z
            for i in range(3)
        )
        sun = self._to(self.sun)
        d = tuple(sun[:, i, None, None] for i in range(3))
        index = near_bound(self.subject, o, d).reshape(-1).nonzero(as_tuple=True)[0]  # type: ignore[arg-type]
        lit = torch.ones(frames * h * w, device=self.device)
        if len(index):
            frame = torch.div(index, h * w, rounding_mode="floor")
            ray = tuple(sun[:, i][frame] for i in range(3))
            start = tuple(c.reshape(-1)[index] for c in o)
            lit[index] = (~blocked(self.subject.parts, start, ray)).float()  # type: ignore[arg-type]
        return window, (lit.view(frames, h, w) * soft)[:, None]
