"""The twelve subjects: lists of parts in a frame with y up, the base at y = 0 and a nominal height of 1.

Vehicles and the duck look along +x, everything else looks along +z (towards the camera).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import torch

from .primitives import Box, Capsule, Convex, Ellipsoid, Frustum, Primitive, Vec3, rotation


@dataclass(frozen=True)
class Part:
    """One primitive and its material. `rgb` None means the scene's colour; `shade` multiplies it (linear light)."""

    solid: Primitive
    rgb: Vec3 | None = None
    shade: float = 1.0
    gloss: float = 0.25
    glow: float = 0.0
    pattern: str = ""
    shadow: bool = True  # small parts cast no shadow: not worth their rays


@dataclass(frozen=True)
class Subject:
    """Parts plus derived bounds."""

    parts: tuple[Part, ...]
    hull: torch.Tensor = field(repr=False)  # [K, 3] points that enclose the subject
    centre: Vec3  # bounding ellipsoid
    radii: Vec3
    half: Vec3  # bounding box around the same centre
    float_depth: float  # how deep it sits in water


DARK: Vec3 = (0.03, 0.03, 0.035)
GREY: Vec3 = (0.32, 0.33, 0.36)
GLASS: Vec3 = (0.05, 0.10, 0.16)
WOOD: Vec3 = (0.20, 0.095, 0.04)
CREAM: Vec3 = (0.78, 0.70, 0.55)
WHITE: Vec3 = (0.85, 0.85, 0.85)
BEAK: Vec3 = (0.95, 0.36, 0.02)
ROOF: Vec3 = (0.17, 0.075, 0.05)


def _hexahedron(bottom: list[Vec3], top: list[Vec3]) -> Convex:
    """Solid between two polygons with the same number of corners."""
    n = len(bottom)
    sides = [(i, (i + 1) % n, n + i, n + (i + 1) % n) for i in range(n)]
    return Convex(bottom + top, [tuple(range(n)), tuple(range(n, 2 * n)), *sides])


def _slab(x0: float, x1: float, y: float, z: float) -> list[Vec3]:
    return [(x0, y, -z), (x1, y, -z), (x1, y, z), (x0, y, z)]


def _ball() -> list[Part]:
    return [Part(Ellipsoid((0, 0.48, 0), 0.48), gloss=0.6, pattern="wedges")]


def _cube() -> list[Part]:
    return [Part(Box((0, 0.4, 0), (0.4, 0.4, 0.4)), gloss=0.15, pattern="frame")]


def _cone() -> list[Part]:
    return [
        Part(Frustum((0, 0.05, 0), 0.40, 0.0, 0.99), gloss=0.35, pattern="spiral"),
        Part(Frustum((0, 0, 0), 0.47, 0.47, 0.05), shade=0.55),
    ]


def _tree() -> list[Part]:
    blobs = [
        ((0.0, 0.70, 0.0), (0.34, 0.30, 0.34), 1.0),
        ((-0.24, 0.60, 0.06), (0.20, 0.18, 0.20), 0.86),
        ((0.25, 0.58, -0.02), (0.20, 0.17, 0.20), 0.92),
        ((0.05, 0.56, 0.25), (0.19, 0.16, 0.17), 1.05),
        ((-0.04, 0.58, -0.25), (0.2, 0.17, 0.17), 0.85),
        ((0.10, 0.90, 0.04), (0.20, 0.16, 0.20), 1.12),
    ]
    foliage = [Part(Ellipsoid(c, r), shade=s, gloss=0.05, pattern="leaves") for c, r, s in blobs]
    return [
        Part(Frustum((0, 0, 0), 0.12, 0.065, 0.55), rgb=WOOD, gloss=0.02),
        Part(Capsule((0.0, 0.3, 0.0), (0.2, 0.52, 0.03), 0.035), rgb=WOOD, gloss=0.02, shadow=False),
        *foliage,
    ]


def _house() -> list[Part]:
    w, d, h, top = 0.40, 0.34, 0.48, 0.92
    gable = Convex(
        [(-w, h, -d), (w, h, -d), (0, top - 0.06, -d), (-w, h, d), (w, h, d), (0, top - 0.06, d)],
        [(0, 1, 2), (3, 4, 5), (0, 1, 3, 4), (0, 2, 3, 5), (1, 2, 4, 5)],
    )
    parts = [Part(Box((0, h / 2, 0), (w, h / 2, d)), gloss=0.03), Part(gable, gloss=0.03)]
    for s in (-1, 1):  # two roof planes with overhang
        a = (s * (w + 0.07), h - 0.06)
        b = (0.0, top)
        thick = 0.055
        section = [(a[0], a[1]), (b[0], b[1]), (b[0], b[1] + thick), (a[0], a[1] + thick)]
        ends = [[(x, y, z) for x, y in section] for z in (-d - 0.07, d + 0.07)]
        parts.append(Part(_hexahedron(ends[0], ends[1]), rgb=ROOF, gloss=0.05))
    return [
        *parts,
        Part(Box((0.0, 0.15, d), (0.085, 0.15, 0.015)), rgb=WOOD, shadow=False),
        Part(
            Box((-0.24, 0.28, d), (0.085, 0.08, 0.012)), rgb=(0.9, 0.7, 0.25), glow=0.35, pattern="panes", shadow=False
        ),
        Part(
            Box((0.24, 0.28, d), (0.085, 0.08, 0.012)), rgb=(0.9, 0.7, 0.25), glow=0.35, pattern="panes", shadow=False
        ),
        Part(
            Box((w, 0.28, 0), (0.012, 0.08, 0.1)), rgb=(0.9, 0.7, 0.25), glow=0.35, pattern="panes_side", shadow=False
        ),
        Part(Box((0.22, 0.84, -0.12), (0.06, 0.15, 0.06)), rgb=(0.28, 0.12, 0.09)),
    ]


def _car() -> list[Part]:
    parts = [
        Part(_hexahedron(_slab(-0.56, 0.57, 0.12, 0.25), _slab(-0.54, 0.52, 0.26, 0.26)), gloss=0.7),
        Part(_hexahedron(_slab(-0.54, 0.52, 0.26, 0.26), _slab(-0.50, 0.40, 0.36, 0.235)), gloss=0.7),
        Part(_hexahedron(_slab(-0.42, 0.27, 0.36, 0.225), _slab(-0.30, 0.10, 0.54, 0.18)), rgb=GLASS, gloss=1.0),
        Part(_hexahedron(_slab(-0.31, 0.11, 0.535, 0.185), _slab(-0.27, 0.07, 0.575, 0.16)), gloss=0.7),
        Part(Box((-0.1, 0.45, 0), (0.022, 0.095, 0.215)), gloss=0.7, shadow=False),
    ]
    for x in (-0.34, 0.33):
        wheel = Frustum((x, 0.13, -0.28), 0.135, 0.135, 0.56, rotation("x", 90))
        parts.append(Part(wheel, rgb=DARK, gloss=0.1, pattern="wheel"))
    for z in (-0.17, 0.17):
        parts.append(
            Part(Ellipsoid((0.545, 0.225, z), (0.03, 0.045, 0.06)), rgb=(1.0, 0.95, 0.7), glow=0.5, shadow=False)
        )
    parts.append(Part(Box((-0.55, 0.23, 0), (0.012, 0.03, 0.21)), rgb=(0.6, 0.01, 0.01), glow=0.2, shadow=False))
    return parts


def _boat() -> list[Part]:
    bottom = [(-0.42, 0.0, -0.12), (0.30, 0.0, -0.12), (0.42, 0.0, 0.0), (0.30, 0.0, 0.12), (-0.42, 0.0, 0.12)]
    deck = [(-0.52, 0.30, -0.22), (0.28, 0.30, -0.22), (0.62, 0.30, 0.0), (0.28, 0.30, 0.22), (-0.52, 0.30, 0.22)]
    hull = Convex(
        bottom + deck,
        [
            (0, 2, 3),
            (5, 7, 8),
            (0, 1, 5),
            (1, 2, 7),
            (2, 3, 7),
            (3, 4, 9),
            (0, 4, 5),
        ],
    )
    top = [(x * 1.02, y + 0.035, z * 1.03) for x, y, z in deck]
    rim = [(x * 1.02, y, z * 1.03) for x, y, z in deck]
    main_sail = _hexahedron(
        [(-0.02, 0.42, -0.012), (-0.50, 0.42, -0.012), (-0.02, 1.08, -0.012)],
        [(-0.02, 0.42, 0.012), (-0.50, 0.42, 0.012), (-0.02, 1.08, 0.012)],
    )
    jib = _hexahedron(
        [(0.07, 0.42, -0.01), (0.46, 0.42, -0.01), (0.07, 0.92, -0.01)],
        [(0.07, 0.42, 0.01), (0.46, 0.42, 0.01), (0.07, 0.92, 0.01)],
    )
    return [
        Part(hull, gloss=0.4, pattern="hull"),
        Part(_hexahedron(rim, top), rgb=WOOD, gloss=0.2),
        Part(Frustum((0.02, 0.3, 0), 0.028, 0.018, 0.82), rgb=WOOD, shadow=False),
        Part(main_sail, rgb=CREAM, gloss=0.0, pattern="sail"),
        Part(jib, gloss=0.0),
        Part(Box((-0.30, 0.37, 0), (0.10, 0.04, 0.11)), rgb=CREAM, shadow=False),
    ]


def _rocket() -> list[Part]:
    parts = [
        Part(Frustum((0, 0.20, 0), 0.15, 0.19, 0.25), gloss=0.5),
        Part(Frustum((0, 0.45, 0), 0.19, 0.15, 0.25), gloss=0.5),
        Part(Ellipsoid((0, 0.70, 0), (0.15, 0.36, 0.15), dome=True), rgb=GREY, gloss=0.7, pattern="nose"),
        Part(Frustum((0, 0.12, 0), 0.12, 0.09, 0.09), rgb=DARK),
        Part(
            Ellipsoid((0, 0.60, 0.155), (0.075, 0.075, 0.03)), rgb=(0.25, 0.65, 0.9), gloss=1.0, glow=0.1, shadow=False
        ),
    ]
    for i in range(4):
        a = math.radians(45 + 90 * i)
        c, s = math.cos(a), math.sin(a)
        outline = [(0.12, 0.18), (0.12, 0.46), (0.36, 0.16), (0.36, 0.0)]
        faces = [[(r * c - z * s, y, r * s + z * c) for r, y in outline] for z in (-0.018, 0.018)]
        parts.append(Part(_hexahedron(faces[0], faces[1]), shade=0.45, gloss=0.4))
    return parts


def _robot() -> list[Part]:
    parts = [
        Part(Box((0, 0.46, 0), (0.21, 0.19, 0.15)), gloss=0.5, pattern="chest"),
        Part(Box((0, 0.80, 0), (0.17, 0.12, 0.13)), gloss=0.5),
        Part(Frustum((0, 0.64, 0), 0.06, 0.06, 0.05), rgb=GREY, shadow=False),
        Part(Frustum((0, 0.92, 0), 0.014, 0.014, 0.09), rgb=GREY, shadow=False),
        Part(Ellipsoid((0, 1.02, 0), 0.035), rgb=(0.9, 0.05, 0.03), glow=0.4, shadow=False),
        Part(Box((0, 0.735, 0.13), (0.08, 0.015, 0.01)), rgb=DARK, shadow=False),
    ]
    for s in (-1, 1):
        parts += [
            Part(
                Ellipsoid((s * 0.075, 0.82, 0.125), (0.042, 0.042, 0.03)), rgb=(0.3, 0.95, 1.0), glow=0.8, shadow=False
            ),
            Part(Capsule((s * 0.27, 0.58, 0), (s * 0.34, 0.32, 0.05), 0.05), rgb=GREY, gloss=0.6),
            Part(Box((s * 0.11, 0.14, 0.02), (0.075, 0.14, 0.10)), rgb=GREY, gloss=0.4),
        ]
    return parts


def _snowman() -> list[Part]:
    parts = [
        Part(Ellipsoid((0, 0.24, 0), (0.29, 0.26, 0.29)), gloss=0.08),
        Part(Ellipsoid((0, 0.54, 0), (0.21, 0.19, 0.21)), gloss=0.08),
        Part(Ellipsoid((0, 0.77, 0), 0.155), gloss=0.08),
        Part(Frustum((0, 0.775, 0.13), 0.038, 0.0, 0.2, rotation("x", 90)), rgb=BEAK),
        Part(Frustum((0, 0.865, 0), 0.19, 0.19, 0.025), rgb=DARK),
        Part(Frustum((0, 0.885, 0), 0.115, 0.115, 0.15), rgb=DARK, pattern="band"),
    ]
    for s in (-1, 1):
        parts.append(Part(Ellipsoid((s * 0.06, 0.815, 0.135), 0.024), rgb=DARK, gloss=0.8, shadow=False))
        parts.append(Part(Capsule((s * 0.19, 0.58, 0), (s * 0.42, 0.70, 0.04), 0.018), rgb=WOOD))
    for y, z in ((0.60, 0.198), (0.50, 0.206)):
        parts.append(Part(Ellipsoid((0, y, z), 0.027), rgb=DARK, gloss=0.8, shadow=False))
    return parts


def _mushroom() -> list[Part]:
    return [
        Part(Frustum((0, 0, 0), 0.19, 0.13, 0.30), rgb=CREAM, gloss=0.05),
        Part(Frustum((0, 0.30, 0), 0.13, 0.15, 0.22), rgb=CREAM, gloss=0.05),
        Part(Ellipsoid((0, 0.46, 0), (0.47, 0.46, 0.47), dome=True), gloss=0.45, pattern="spots"),
        Part(Frustum((0, 0.435, 0), 0.40, 0.46, 0.028), rgb=CREAM, shade=0.8, gloss=0.0, shadow=False),
    ]


def _duck() -> list[Part]:
    parts = [
        Part(Ellipsoid((-0.05, 0.27, 0), (0.43, 0.27, 0.30)), gloss=0.35),
        Part(Ellipsoid((0.24, 0.66, 0), (0.22, 0.21, 0.21)), gloss=0.35),
        Part(Frustum((0.19, 0.36, 0), 0.20, 0.15, 0.2, rotation("z", -8)), gloss=0.35),
        Part(Frustum((-0.33, 0.30, 0), 0.19, 0.02, 0.30, rotation("z", 48)), gloss=0.35),
        Part(Ellipsoid((0.47, 0.62, 0), (0.14, 0.045, 0.11)), rgb=BEAK, gloss=0.4),
    ]
    for s in (-1, 1):
        parts.append(
            Part(Ellipsoid((-0.10, 0.34, s * 0.25), (0.25, 0.14, 0.08), rotation("z", -14)), shade=0.72, gloss=0.3)
        )
        parts.append(Part(Ellipsoid((0.34, 0.73, s * 0.155), (0.042, 0.05, 0.04)), rgb=DARK, gloss=1.0, shadow=False))
    return parts


_BUILDERS = {
    "ball": _ball,
    "cube": _cube,
    "cone": _cone,
    "tree": _tree,
    "house": _house,
    "car": _car,
    "boat": _boat,
    "rocket": _rocket,
    "robot": _robot,
    "snowman": _snowman,
    "mushroom": _mushroom,
    "duck": _duck,
}
_FLOAT_DEPTH = {"boat": 0.10, "duck": 0.10, "ball": 0.12, "cube": 0.12}


@cache
def subject(name: str) -> Subject:
    """Build (once) the named subject."""
    parts = tuple(_BUILDERS[name]())
    hull = torch.tensor([p for part in parts for p in part.solid.points()])
    low, high = hull.min(0).values, hull.max(0).values
    centre, half = (low + high) / 2, (high - low) / 2
    stretch = float(((hull - centre) / half).norm(dim=1).max()) * 1.04
    radii = (half * stretch).tolist()
    return Subject(
        parts, hull, tuple(centre.tolist()), tuple(radii), tuple((half * 1.03).tolist()), _FLOAT_DEPTH.get(name, 0.05)
    )
