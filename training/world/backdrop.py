"""Sky, distant hills and ground: analytic colours per ray, anti-aliased by fading detail below one pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .palette import GROUND_RGB, Light
from .primitives import Vec, Vec3
from .scene import Scene
from .textures import lookup, noise, star_table


def smoothstep(low: float, high: float, x: Tensor) -> Tensor:
    t = ((x - low) * (1.0 / (high - low))).clamp_(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def mix(base: list[Tensor], rgb: Vec3, weight: Tensor) -> list[Tensor]:
    """base + weight * (rgb - base), per channel."""
    return [b + weight * (c - b) for b, c in zip(base, rgb, strict=True)]


def gradient(light: Light, height: Tensor) -> list[Tensor]:
    """Sky colour without disc and clouds, for the sine of the elevation (>= 0)."""
    low = 1.0 - torch.exp(height * -7.0)
    high = smoothstep(0.12, 0.55, height)
    return [
        h + low * (m - h) + high * (z - m) for h, m, z in zip(light.horizon, light.middle, light.zenith, strict=True)
    ]


@dataclass
class Backdrop:
    """Paints sky and ground of one scene."""

    scene: Scene
    light: Light
    pixel: float  # angular size of a pixel (radians)

    def sky(self, d: Vec, seconds: Tensor) -> list[Tensor]:
        """Colour towards unit directions d [T, ...]; seconds broadcasts against them."""
        light, scene = self.light, self.scene
        device = str(d[0].device)
        height = d[1].clamp_min(0.0)
        rgb = gradient(light, height)
        if light.stars:
            rgb = self._stars(rgb, d, height)
        toward = d[0] * light.disc[0] + d[1] * light.disc[1] + d[2] * light.disc[2]
        if light.glow:
            near = (toward.clamp_min(0.0)) ** 2
            near4 = near * near
            halo = near4 * near4 * near4 * (0.35 * light.glow) + torch.exp((toward - 1.0) * 180.0) * (0.7 * light.glow)
            rgb = [c + halo * s for c, s in zip(rgb, light.disc_rgb, strict=True)]
            # the width of the rim in cosine: one and a half pixels
            rim = max(math.sin(math.acos(min(light.disc_cos, 1.0))) * self.pixel * 1.5, 1e-5)
            disc = smoothstep(light.disc_cos - rim, light.disc_cos + rim, toward)
            rgb = mix(rgb, light.disc_rgb, disc)
        if light.cloud_amount > 0.02:
            inv = 0.20 / (height + 0.16)  # a curved ceiling: no infinite compression at the horizon
            u = d[0] * inv + scene.rand("ground_u") + seconds * 0.006
            v = d[2] * inv * 1.3 + scene.rand("ground_v")
            tone = lookup(noise("cloud", device), u, v, 2)
            if scene.time == "overcast":
                cover = smoothstep(-2.2, 1.4, tone[0]) * 0.75
            else:
                low = 1.5 - 1.5 * light.cloud_amount
                cover = smoothstep(low, low + 1.5, tone[0]) * smoothstep(0.01, 0.12, height) * 0.9
            body = smoothstep(-1.6, 1.6, tone[1])
            lit = [a + body * (b - a) for a, b in zip(light.cloud_dark, light.cloud_lit, strict=True)]
            rgb = [c + cover * (k - c) for c, k in zip(rgb, lit, strict=True)]
        return self._hills(rgb, d)

    def _stars(self, rgb: list[Tensor], d: Vec, height: Tensor) -> list[Tensor]:
        cells = 26.0  # cells per radian: one star (or none) in each
        x = torch.atan2(d[0], -d[2]) * cells + 1000.0 + 50.0 * self.scene.rand("sky")
        y = torch.asin(height.clamp_max(1.0)) * cells + 1000.0
        ix, iy = x.floor(), y.floor()
        cell = star_table(str(x.device))[:, iy.long() % 64, ix.long() % 64]
        radius = max(self.pixel * cells * 0.62, 0.030)
        gap = (x - ix - cell[0]) ** 2 + (y - iy - cell[1]) ** 2
        shine = torch.exp(gap * (-0.5 / radius**2)) * cell[2] * self.light.stars * smoothstep(0.03, 0.2, height)
        return [c + shine * w for c, w in zip(rgb, (0.95, 0.97, 1.0), strict=True)]

    def _hills(self, rgb: list[Tensor], d: Vec) -> list[Tensor]:
        """Two ridges in haze, as heights over the azimuth."""
        scene, light = self.scene, self.light
        flat = torch.atan2(d[0], -d[2])
        p = 6.28 * scene.rand("hills")
        tall = 0.35 if scene.ground == "ocean" else 0.7 if scene.ground == "checker" else 1.0
        ground = GROUND_RGB[scene.ground]
        tint = (0.10, 0.16, 0.20) if scene.ground == "ocean" else ground
        shade = [s * max(light.direction[1], 0.3) + a for s, a in zip(light.sun, light.ambient, strict=True)]
        ridges = (
            (0.050, 0.020, 2.3, 5.1, 11.0, p, 0.72),
            (0.022, 0.014, 3.7, 8.3, 17.0, p * 1.7 + 1.0, 0.45),
        )
        for base, size, f1, f2, f3, phase, haze in ridges:
            wave = (
                torch.sin(flat * f1 + phase)
                + 0.5 * torch.sin(flat * f2 + 2 * phase)
                + 0.22 * torch.sin(flat * f3 + phase)
            )
            ridge = tall * (base + size * wave)
            cover = ((ridge - d[1]) * (0.8 / self.pixel) + 0.5).clamp_(0.0, 1.0)
            colour: Vec3 = tuple(  # type: ignore[assignment]
                (1 - haze) * g * s * 0.75 + haze * (0.55 * h + 0.45 * m)
                for g, s, h, m in zip(tint, shade, light.horizon, light.middle, strict=True)
            )
            rgb = mix(rgb, colour, cover)
        return rgb

    def ground(self, x: Tensor, z: Tensor, d: Vec, far: Tensor, shadow: Tensor | None, seconds: Tensor) -> list[Tensor]:
        """Colour of the ground at (x, z), seen along unit d from a distance `far`; shadow 0..1 (1 = lit), or None."""
        light, scene = self.light, self.scene
        grazing = (-d[1]).clamp_min(0.02)
        foot = far * self.pixel / grazing  # length of a pixel's footprint away from the camera (world units)
        gu, gv = x + 40.0 * scene.rand("ground_u"), z + 40.0 * scene.rand("ground_v")
        lit = light.direction[1]
        if scene.ground == "ocean":
            rgb = self._ocean(gu, gv, d, foot, shadow, seconds)
        else:
            albedo, facing = getattr(self, "_" + scene.ground)(gu, gv, foot)
            key = lit if facing is None else lit * facing
            if shadow is not None:
                key = key * (1.0 - light.shadow + light.shadow * shadow)
            rgb = [a * (key * s + m) for a, s, m in zip(albedo, light.sun, light.ambient, strict=True)]
            if shadow is not None:  # what stands close also hides some of the sky: all there is under clouds
                share = 0.30 if light.shadow > 0.5 else 0.50
                hide = 1.0 - share + share * shadow
                rgb = [c * hide for c in rgb]
        fog = 1.0 - torch.exp(far * -light.haze)
        veil: Vec3 = tuple(0.55 * h + 0.45 * m for h, m in zip(light.horizon, light.middle, strict=True))  # type: ignore[assignment]
        return mix(rgb, veil, fog * 0.85)

    def _tones(self, x: Tensor, z: Tensor, scale: float, kind: str, foot: Tensor, wavelength: float) -> Tensor:
        """Noise of unit deviation, faded out where its wavelength (world units) drops towards a pixel."""
        keep = torch.exp((foot * (1.6 / wavelength)) ** 2 * -1.0)
        return lookup(noise(kind, str(x.device)), x * scale, z * scale)[0] * keep

    def _grass(self, x: Tensor, z: Tensor, foot: Tensor) -> tuple[list[Tensor], Tensor | None]:
        patch = self._tones(x, z, 0.09, "cloud", foot, 1.0)
        blades = self._tones(x * 1.5, z * 0.8, 0.30, "grain", foot, 0.11)
        tuft = self._tones(z, x, 0.10, "grain", foot, 0.33)
        tone = (1.0 + 0.17 * patch + 0.20 * blades + 0.13 * tuft).clamp_(0.35, 1.8)
        dry = 0.5 + 0.25 * patch.clamp(-2, 2) + 0.15 * self.scene.rand("ground_tint", -1, 1)
        r, g, b = GROUND_RGB["grass"]
        return [tone * (r + 0.075 * dry), tone * (g + 0.035 * dry), tone * b], None

    def _desert(self, x: Tensor, z: Tensor, foot: Tensor) -> tuple[list[Tensor], Tensor | None]:
        bend = lookup(noise("cloud", str(x.device)), x * 0.05, z * 0.05, 2)
        wavelength = 0.34
        phase = (z + 0.35 * x) * (2 * math.pi / wavelength) + 2.2 * bend[0] + 1.2 * torch.sin(x * 1.3)
        keep = torch.exp((foot * (2.2 / wavelength)) ** 2 * -1.0)
        ripple = torch.sin(phase + 0.5 * torch.sin(phase)) * keep
        dune = torch.sin(z * 0.55 + x * 0.22 + 1.2 * bend[1]) * 0.12
        grit = self._tones(x, z, 0.35, "grain", foot, 0.1)
        facing = 1.0 + 0.20 * ripple + dune + 0.05 * grit
        tint = self.scene.rand("ground_tint", -0.03, 0.03)
        r, g, b = GROUND_RGB["desert"]
        tone = 1.0 + 0.08 * ripple + 0.04 * bend[0]
        return [tone * r, tone * (g + tint), tone * (b + tint)], facing

    def _snow(self, x: Tensor, z: Tensor, foot: Tensor) -> tuple[list[Tensor], Tensor | None]:
        drift = self._tones(x, z, 0.07, "cloud", foot, 1.2)
        grit = self._tones(x, z, 0.3, "grain", foot, 0.12)
        facing = 1.0 + 0.10 * drift.clamp(-2, 2) + 0.05 * grit
        cold = 0.04 * drift.clamp(-2, 2)
        r, g, b = GROUND_RGB["snow"]
        return [r + cold, g + 0.7 * cold, b + 0.2 * cold], facing

    def _checker(self, x: Tensor, z: Tensor, foot: Tensor) -> tuple[list[Tensor], Tensor | None]:
        side = 0.5

        def wave(p: Tensor, width: Tensor) -> Tensor:
            """Box-filtered square wave of period 2 * side, -1..1."""
            half = (width * (0.5 / side)).clamp_(1e-3, 1.0)
            p = p * (1.0 / side)
            upper, lower = (p + half) * 0.5, (p - half) * 0.5
            fold_up, fold_low = (upper - upper.floor() - 0.5).abs(), (lower - lower.floor() - 0.5).abs()
            return (fold_up - fold_low) * (2.0 / half)

        tile = wave(x, foot * 0.8) * wave(z, foot) * torch.exp((foot / (1.6 * side)) ** 2 * -1.0) * 0.5 + 0.5
        tint = self.scene.rand("ground_tint", -0.04, 0.04)
        light_rgb, dark_rgb = (0.72 + tint, 0.68, 0.62 - tint), (0.105, 0.11, 0.13)
        return [b + tile * (a - b) for a, b in zip(light_rgb, dark_rgb, strict=True)], None

    def _ocean(
        self, x: Tensor, z: Tensor, d: Vec, foot: Tensor, shadow: Tensor | None, seconds: Tensor
    ) -> list[Tensor]:
        """Waves tilt the water; it mirrors the sky by its Fresnel share and shows its own colour otherwise."""
        light = self.light
        slope_x = torch.zeros_like(x)
        slope_z = torch.zeros_like(x)
        # direction (x, z), wavelength (units), steepness
        waves = (
            (0.35, 0.94, 1.90, 0.085),
            (-0.55, 0.83, 1.05, 0.075),
            (0.80, 0.60, 0.62, 0.075),
            (-0.15, 0.99, 0.40, 0.070),
            (0.62, -0.78, 0.29, 0.06),
            (-0.90, 0.43, 0.21, 0.05),
        )
        crest = torch.zeros_like(x)
        for dx, dz, length, steep in waves:
            k = 2 * math.pi / length
            speed = 1.1 * math.sqrt(9.8 / 3.0 * k)  # shorter waves turn faster, as in deep water
            keep = torch.exp((foot * (1.5 / length)) ** 2 * -1.0) * steep
            phase = (x * dx + z * dz) * k - seconds * speed + 7.0 * length
            tilt = torch.cos(phase) * keep
            slope_x += tilt * dx
            slope_z += tilt * dz
            crest += torch.sin(phase) * keep
        inv = torch.rsqrt(slope_x * slope_x + slope_z * slope_z + 1.0)
        nx, ny, nz = -slope_x * inv, inv, -slope_z * inv
        along = (d[0] * nx + d[1] * ny + d[2] * nz).clamp(max=-0.02)
        rx, ry, rz = d[0] - 2 * along * nx, (d[1] - 2 * along * ny).abs(), d[2] - 2 * along * nz
        fresnel = 0.03 + 0.72 * (1.0 + along) ** 4
        mirror = gradient(light, ry)
        base = GROUND_RGB["ocean"]
        glowing = (1.0 + 2.6 * crest).clamp_(0.4, 1.9)
        level = [0.75 * s * light.direction[1] + 1.15 * a for s, a in zip(light.sun, light.ambient, strict=True)]
        if shadow is not None:
            glowing = glowing * (0.55 + 0.45 * shadow)
        rgb = [glowing * (b * q) for b, q in zip(base, level, strict=True)]
        rgb = [c + fresnel * (m - c) for c, m in zip(rgb, mirror, strict=True)]
        if light.glow:
            sun = light.disc
            toward = (rx * sun[0] + ry * sun[1] + rz * sun[2]).clamp_min(0.0)
            glitter = torch.exp((toward - 1.0) * 90.0) * (1.2 * min(1.0, 0.5 + light.glow))
            rgb = [c + glitter * s for c, s in zip(rgb, light.disc_rgb, strict=True)]
        return rgb
