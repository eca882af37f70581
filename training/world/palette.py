"""Colours and light: what each colour, time of day and ground word looks like, in linear light."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

from .primitives import Vec3
from .scene import Scene

# hue (turns), saturation, value in display space; jitter is small against the gaps between them
_HSV: dict[str, Vec3] = {
    "red": (0.995, 0.90, 0.86),
    "orange": (0.072, 0.95, 0.97),
    "yellow": (0.143, 0.90, 0.98),
    "green": (0.36, 0.82, 0.66),
    "blue": (0.61, 0.86, 0.88),
    "purple": (0.765, 0.72, 0.72),
    "pink": (0.925, 0.42, 1.0),
    "white": (0.10, 0.015, 0.96),
    "black": (0.62, 0.10, 0.17),
}


@dataclass(frozen=True)
class Light:
    """Sky and light of one scene (linear RGB)."""

    horizon: Vec3
    middle: Vec3
    zenith: Vec3
    sun: Vec3  # colour x strength of the key light
    ambient: Vec3  # from above
    bounce: float  # share of the light that the ground sends back up
    direction: Vec3  # unit, towards the key light that shades things
    disc: Vec3  # unit, towards the disc painted in the sky
    disc_rgb: Vec3
    disc_cos: float  # cosine of the disc's radius
    glow: float
    cloud_lit: Vec3
    cloud_dark: Vec3
    cloud_amount: float
    stars: float
    haze: float  # per unit of distance
    shadow: float  # how dark a cast shadow is
    fill: float  # extra ambient light for the subject alone, so that its colour reads in poor light


def linear(rgb: Vec3) -> Vec3:
    return tuple(c**2.2 for c in rgb)


def main_colour(scene: Scene) -> Vec3:
    """The scene's subject colour with its small random shift, linear RGB."""
    hue, saturation, value = _HSV[scene.colour]
    hue += 0.010 * scene.rand("hue", -1, 1)
    saturation *= scene.rand("saturation", 0.93, 1.05)
    value *= scene.rand("value", 0.93, 1.03)
    return linear(colorsys.hsv_to_rgb(hue % 1.0, min(saturation, 1.0), min(value, 1.0)))


def _aim(azimuth: float, elevation: float) -> Vec3:
    """Unit vector; azimuth 0 is straight ahead of the resting camera (-z), positive to the right."""
    return (math.sin(azimuth) * math.cos(elevation), math.sin(elevation), -math.cos(azimuth) * math.cos(elevation))


def light(scene: Scene) -> Light:
    """Light of the scene. The painted disc stands ahead of the camera; the key light comes from the same side but
    is turned towards the viewer, because a subject lit from behind would not show its colour."""
    side = scene.sign("light_side")
    angle = scene.rand("light_angle", -0.25, 0.25)
    up = scene.rand("sun_height")
    # the resting camera looks from +cam_azimuth, so straight ahead for it is -cam_azimuth
    ahead = -scene.rand("cam_azimuth", -0.25, 0.25)
    disc_azimuth = ahead + side * scene.rand("sun_azimuth", 0.16, 0.36)
    clouds = scene.rand("clouds")
    shift = scene.rand("sky", -1.0, 1.0)
    if scene.time == "day":
        return Light(
            horizon=(0.47, 0.70, 0.93),
            middle=(0.15, 0.42 + 0.04 * shift, 0.86),
            zenith=(0.06, 0.24 + 0.03 * shift, 0.70),
            sun=(0.90, 0.86, 0.78),
            ambient=(0.27, 0.32, 0.40),
            bounce=0.35,
            direction=_aim(ahead + side * (2.1 + angle), 0.80 + 0.25 * up),
            disc=_aim(disc_azimuth, 0.17 + 0.07 * up),
            disc_rgb=(1.5, 1.45, 1.25),
            disc_cos=math.cos(0.034),
            glow=0.26,
            cloud_lit=(1.0, 1.0, 1.0),
            cloud_dark=(0.72, 0.78, 0.88),
            cloud_amount=0.25 + 0.5 * clouds,
            stars=0.0,
            haze=0.020,
            shadow=0.85,
            fill=0.25,
        )
    if scene.time == "sunset":
        return Light(
            horizon=(1.0, 0.42 + 0.05 * shift, 0.09),
            middle=(0.78, 0.21, 0.20),
            zenith=(0.20, 0.09, 0.30),
            sun=(1.02, 0.67, 0.42),
            ambient=(0.36, 0.29, 0.35),
            bounce=0.30,
            direction=_aim(ahead + side * (1.75 + angle), 0.42 + 0.15 * up),
            disc=_aim(disc_azimuth, 0.075 + 0.07 * up),
            disc_rgb=(1.6, 1.1, 0.45),
            disc_cos=math.cos(0.050),
            glow=0.75,
            cloud_lit=(1.0, 0.42, 0.22),
            cloud_dark=(0.38, 0.15, 0.24),
            cloud_amount=0.35 + 0.45 * clouds,
            stars=0.0,
            haze=0.028,
            shadow=0.8,
            fill=0.30,
        )
    if scene.time == "night":
        return Light(
            horizon=(0.040, 0.060, 0.135),
            middle=(0.016, 0.026, 0.075),
            zenith=(0.004, 0.007, 0.030),
            sun=(0.40, 0.43, 0.48),
            ambient=(0.085, 0.10, 0.14),
            bounce=0.25,
            direction=_aim(ahead + side * (2.3 + angle), 0.80 + 0.2 * up),
            disc=_aim(disc_azimuth, 0.13 + 0.08 * up),
            disc_rgb=(0.92, 0.94, 0.85),
            disc_cos=math.cos(0.040),
            glow=0.16,
            cloud_lit=(0.03, 0.04, 0.075),
            cloud_dark=(0.012, 0.018, 0.04),
            cloud_amount=0.15 * clouds,
            stars=0.9,
            haze=0.030,
            shadow=0.8,
            fill=1.4,
        )
    grey = 0.03 * shift
    return Light(
        horizon=(0.62 + grey, 0.64 + grey, 0.66 + grey),
        middle=(0.44, 0.46, 0.49),
        zenith=(0.27, 0.29, 0.32),
        sun=(0.30, 0.30, 0.29),
        ambient=(0.52, 0.53, 0.55),
        bounce=0.35,
        direction=_aim(ahead + side * (2.2 + angle), 1.15),
        disc=_aim(disc_azimuth, 0.5),
        disc_rgb=(0.0, 0.0, 0.0),
        disc_cos=2.0,
        glow=0.0,
        cloud_lit=(0.66, 0.67, 0.69),
        cloud_dark=(0.27, 0.28, 0.31),
        cloud_amount=1.0,
        stars=0.0,
        haze=0.034,
        shadow=0.35,
        fill=0.28,
    )


GROUND_RGB: dict[str, Vec3] = {
    "grass": (0.085, 0.235, 0.035),
    "desert": (0.60, 0.38, 0.17),
    "snow": (0.78, 0.83, 0.90),
    "checker": (0.42, 0.40, 0.38),
    "ocean": (0.010, 0.095, 0.17),
}
