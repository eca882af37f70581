"""Analytic convex primitives: nearest entry of a ray, and the outward normal at a surface point.

Vectors are structure-of-arrays triples of float32 tensors of one shape [M] (M rays). Directions need not be unit
length: `t` is measured in multiples of the direction. Every solid is convex and rays start outside of it (or on it),
so the entry point is the only one needed; a miss is +inf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Vec = tuple[Tensor, Tensor, Tensor]
Vec3 = tuple[float, float, float]
Mat3 = tuple[Vec3, Vec3, Vec3]

INF = float("inf")
EPS = 1e-4


def rotation(axis: str, degrees: float) -> Mat3:
    """Rotation matrix (rows) about one axis, right-handed."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if axis == "x":
        return ((1, 0, 0), (0, c, -s), (0, s, c))
    if axis == "y":
        return ((c, 0, s), (0, 1, 0), (-s, 0, c))
    return ((c, -s, 0), (s, c, 0), (0, 0, 1))


def dot(a: Vec, b: Vec) -> Tensor:
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


def unit(v: Vec) -> Vec:
    inv = torch.rsqrt(dot(v, v).clamp_min_(1e-20))
    return (v[0] * inv, v[1] * inv, v[2] * inv)


def _valid(t: Tensor, ok: Tensor) -> Tensor:
    return t.masked_fill(~(ok & (t > EPS)), INF)


def slab_span(half: Vec3, o: Vec, d: Vec) -> tuple[Tensor, Tensor]:
    """Ray parameters between which a line is inside of a centred box with half extents (empty if first > second)."""
    enter: list[Tensor] = []
    leave: list[Tensor] = []
    for i in range(3):
        inv = 1.0 / d[i]
        mid = o[i] * inv
        reach = inv.abs_().mul_(half[i])
        enter.append(-mid - reach)
        leave.append(reach - mid)
    first = torch.maximum(torch.maximum(enter[0], enter[1]), enter[2])
    return first, torch.minimum(torch.minimum(leave[0], leave[1]), leave[2])


class Primitive:
    """A solid placed in the subject's frame: p_own = R^T (p - centre), R given by its rows."""

    def __init__(self, centre: Vec3, rot: Mat3 | None = None) -> None:
        self.centre = centre
        self.rot = rot

    def _turn_in(self, v: Vec) -> Vec:
        if self.rot is None:
            return v
        r = self.rot
        return tuple(v[0] * r[0][j] + v[1] * r[1][j] + v[2] * r[2][j] for j in range(3))  # type: ignore[return-value]

    def _turn_out(self, v: Vec) -> Vec:
        if self.rot is None:
            return v
        return tuple(v[0] * row[0] + v[1] * row[1] + v[2] * row[2] for row in self.rot)  # type: ignore[return-value]

    def _move_in(self, p: Vec) -> Vec:
        c = self.centre
        return self._turn_in((p[0] - c[0], p[1] - c[1], p[2] - c[2]))

    def intersect(self, o: Vec, d: Vec) -> Tensor:
        """Ray parameter of the entry point, [M]; +inf where the ray misses."""
        return self._hit(self._move_in(o), self._turn_in(d))

    def normal(self, p: Vec) -> Vec:
        """Unit outward normal at surface points p."""
        return self._turn_out(unit(self._normal(self._move_in(p))))

    def points(self) -> list[Vec3]:
        """Points of (or just outside) the surface, in the subject's frame: used for bounds."""
        own = torch.tensor(self._points(), dtype=torch.float32)
        if self.rot is not None:
            own = own @ torch.tensor(self.rot, dtype=torch.float32).T
        return [tuple(p) for p in (own + torch.tensor(self.centre)).tolist()]

    def _hit(self, o: Vec, d: Vec) -> Tensor:
        raise NotImplementedError

    def _normal(self, p: Vec) -> Vec:
        raise NotImplementedError

    def _points(self) -> list[Vec3]:
        raise NotImplementedError


class Ellipsoid(Primitive):
    """Ellipsoid with three radii (a number gives a sphere); `dome` keeps only its upper half (flat below)."""

    def __init__(self, centre: Vec3, radii: float | Vec3, rot: Mat3 | None = None, dome: bool = False) -> None:
        super().__init__(centre, rot)
        self.radii: Vec3 = (radii, radii, radii) if isinstance(radii, (int, float)) else radii
        self.dome = dome

    def _hit(self, o: Vec, d: Vec) -> Tensor:
        r = self.radii
        o = (o[0] * (1 / r[0]), o[1] * (1 / r[1]), o[2] * (1 / r[2]))
        d = (d[0] * (1 / r[0]), d[1] * (1 / r[1]), d[2] * (1 / r[2]))
        a, b, c = dot(d, d), dot(o, d), dot(o, o) - 1.0
        disc = b * b - a * c
        root = disc.clamp_min(0.0).sqrt_()
        near = (-b - root) / a
        if not self.dome:
            return _valid(near, disc > 0)
        plane = -o[1] / d[1]
        far = (root - b) / a
        up = d[1] > 0
        enter = torch.where(up, torch.maximum(near, plane), near)
        leave = torch.where(up, far, torch.minimum(far, plane))
        return _valid(enter, (disc > 0) & (enter < leave))

    def _normal(self, p: Vec) -> Vec:
        r = self.radii
        n = (p[0] * r[0] ** -2, p[1] * r[1] ** -2, p[2] * r[2] ** -2)
        if not self.dome:
            return n
        flat = p[1] < 1e-3 * r[1]
        return (n[0].masked_fill(flat, 0.0), n[1].masked_fill(flat, -1.0), n[2].masked_fill(flat, 0.0))

    def _points(self) -> list[Vec3]:
        low = 0 if self.dome else -3
        ring = [2 * math.pi * i / 12 for i in range(12)]
        return [
            (
                self.radii[0] * math.cos(e) * math.cos(a),
                self.radii[1] * math.sin(e),
                self.radii[2] * math.cos(e) * math.sin(a),
            )
            for e in (math.pi / 6 * k for k in range(low, 4))
            for a in ring
        ]


class Box(Primitive):
    """Box with half extents."""

    def __init__(self, centre: Vec3, half: Vec3, rot: Mat3 | None = None) -> None:
        super().__init__(centre, rot)
        self.half = half

    def _hit(self, o: Vec, d: Vec) -> Tensor:
        enter, leave = slab_span(self.half, o, d)
        return _valid(enter, enter < leave)

    def _normal(self, p: Vec) -> Vec:
        rel = [p[i].abs() - self.half[i] for i in range(3)]  # the face is the one with the largest signed distance
        top = torch.maximum(torch.maximum(rel[0], rel[1]), rel[2])
        return tuple((rel[i] >= top - 1e-6).float() * p[i].sign() for i in range(3))  # type: ignore[return-value]

    def _points(self) -> list[Vec3]:
        h = self.half
        return [(x * h[0], y * h[1], z * h[2]) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]


class Convex(Primitive):
    """Convex solid given by its corners on top of being the hull of faces: planes n . p <= k."""

    def __init__(self, corners: Sequence[Vec3], faces: Sequence[Sequence[int]]) -> None:
        super().__init__((0.0, 0.0, 0.0))
        self.corners = list(corners)
        middle = torch.tensor(self.corners).mean(0)
        self.planes: list[tuple[Vec3, float]] = []
        for face in faces:
            a, b, c = (torch.tensor(self.corners[i]) for i in face[:3])
            n = torch.linalg.cross(b - a, c - a)
            n = n / n.norm()
            if torch.dot(n, middle - a) > 0:  # the winding of a face is free: turn its normal outward
                n = -n
            self.planes.append((tuple(n.tolist()), float(torch.dot(n, a))))

    def _dot(self, n: Vec3, v: Vec) -> Tensor:
        parts = [v[i] * n[i] for i in range(3) if abs(n[i]) > 1e-6]
        return sum(parts[1:], start=parts[0])

    def _hit(self, o: Vec, d: Vec) -> Tensor:
        enter = torch.full_like(o[0], -INF)
        leave = torch.full_like(o[0], INF)
        for n, k in self.planes:
            slope = self._dot(n, d)
            t = (k - self._dot(n, o)) / slope
            inward = slope < 0
            enter = torch.maximum(enter, t.masked_fill(~inward, -INF))
            leave = torch.minimum(leave, t.masked_fill(inward, INF))
        return _valid(enter, enter < leave)

    def _normal(self, p: Vec) -> Vec:
        height = torch.stack([self._dot(n, p) - k for n, k in self.planes])
        table = torch.tensor([n for n, _ in self.planes], device=p[0].device)
        n = table[height.argmax(0)]
        return (n[:, 0], n[:, 1], n[:, 2])

    def _points(self) -> list[Vec3]:
        return self.corners


class Frustum(Primitive):
    """Capped cone along +y from `centre` (its base): radius r0 at 0, r1 at `height`. r0 == r1 is a cylinder."""

    def __init__(self, centre: Vec3, r0: float, r1: float, height: float, rot: Mat3 | None = None) -> None:
        super().__init__(centre, rot)
        self.r0, self.r1, self.height = r0, r1, height
        self.slope = (r1 - r0) / height

    def _hit(self, o: Vec, d: Vec) -> Tensor:
        k = self.slope
        ro, rd = o[1] * k + self.r0, d[1] * k
        a = d[0] * d[0] + d[2] * d[2] - rd * rd
        b = o[0] * d[0] + o[2] * d[2] - ro * rd
        c = o[0] * o[0] + o[2] * o[2] - ro * ro
        disc = b * b - a * c
        side = (-b - disc.clamp_min(0.0).sqrt_()) / a  # always the entering root, whatever the sign of a
        y = o[1] + side * d[1]
        side = _valid(side, (disc > 0) & (y >= 0) & (y <= self.height))
        down = d[1] < 0  # only the cap that faces the ray can be an entry
        cap_y = torch.where(down, self.height, 0.0)
        cap_r2 = torch.where(down, self.r1 * self.r1, self.r0 * self.r0)
        cap = (cap_y - o[1]) / d[1]
        x, z = o[0] + cap * d[0], o[2] + cap * d[2]
        return torch.minimum(side, _valid(cap, x * x + z * z <= cap_r2))

    def _normal(self, p: Vec) -> Vec:
        r = torch.sqrt(p[0] * p[0] + p[2] * p[2]).clamp_min_(1e-6)
        off_side = (r - (p[1] * self.slope + self.r0)).abs_()
        top = (p[1] - self.height).abs() < torch.minimum(off_side, p[1].abs())
        bottom = p[1].abs() < torch.minimum(off_side, (p[1] - self.height).abs())
        cap = top | bottom
        ny = torch.full_like(r, -self.slope).masked_fill(top, 1.0).masked_fill(bottom, -1.0)
        return ((p[0] / r).masked_fill(cap, 0.0), ny, (p[2] / r).masked_fill(cap, 0.0))

    def _points(self) -> list[Vec3]:
        ring = [2 * math.pi * i / 12 for i in range(12)]
        ends = ((0.0, self.r0), (self.height, self.r1))
        return [(r * math.cos(a), y, r * math.sin(a)) for y, r in ends for a in ring]


class Capsule(Primitive):
    """Capsule between two points."""

    def __init__(self, a: Vec3, b: Vec3, radius: float) -> None:
        super().__init__((0.0, 0.0, 0.0))
        self.a, self.b, self.radius = a, b, radius
        self.axis: Vec3 = tuple(q - p for p, q in zip(a, b, strict=True))  # type: ignore[assignment]
        self.length2 = sum(x * x for x in self.axis)

    def _along(self, v: Vec) -> Tensor:
        return v[0] * self.axis[0] + v[1] * self.axis[1] + v[2] * self.axis[2]

    def _hit(self, o: Vec, d: Vec) -> Tensor:
        q = (o[0] - self.a[0], o[1] - self.a[1], o[2] - self.a[2])
        dd, qd, qq = dot(d, d), dot(q, d), dot(q, q)
        bd, bq, l2, r2 = self._along(d), self._along(q), self.length2, self.radius**2
        a = l2 * dd - bd * bd
        b = l2 * qd - bd * bq
        c = l2 * qq - bq * bq - r2 * l2
        disc = b * b - a * c
        t = (-b - disc.clamp_min(0.0).sqrt_()) / a
        y = bq + t * bd
        body = _valid(t, (disc > 0) & (y > 0) & (y < l2))
        for low in (True, False):  # the two end spheres
            e = q if low else (o[0] - self.b[0], o[1] - self.b[1], o[2] - self.b[2])
            eb, ec = dot(e, d), dot(e, e) - r2
            h = eb * eb - dd * ec
            body = torch.minimum(body, _valid((-eb - h.clamp_min(0.0).sqrt_()) / dd, h > 0))
        return body

    def _normal(self, p: Vec) -> Vec:
        q = (p[0] - self.a[0], p[1] - self.a[1], p[2] - self.a[2])
        s = (self._along(q) / self.length2).clamp_(0.0, 1.0)
        return tuple(q[i] - s * self.axis[i] for i in range(3))  # type: ignore[return-value]

    def _points(self) -> list[Vec3]:
        r = self.radius
        corners = [(x * r, y * r, z * r) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
        return [(e[0] + c[0], e[1] + c[1], e[2] + c[2]) for e in (self.a, self.b) for c in corners]
