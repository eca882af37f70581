"""Where the subject and the camera are at a time in seconds, and how far the camera must stand to keep all in frame.

World frame: x right, y up, z towards the camera's usual place, ground at y = 0, one unit = the nominal height of a
standing subject, which spans half of the frame's short side from the nominal camera distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .scene import ALWAYS_TURNED, LOOKS_SIDEWAYS, Scene
from .subjects import Subject

TAN_HALF_SHORT = 0.40  # tangent of half the field of view along the short side
NOMINAL_DISTANCE = 1.0 / TAN_HALF_SHORT
CLIP_SECONDS = 4.0  # motions are bounded over this span and rest after it
BOUNCE_SECONDS = 1.0
SPIN_TURNS_PER_SECOND = 0.5
SPIN_LEAN = 0.16  # radians that a spinning subject leans: what is round must be seen to turn as well
SWAY_SECONDS = 2.0


@dataclass(frozen=True)
class Pose:
    """world = linear @ local + position, per frame; lift is the base's height above the ground (world units)."""

    linear: Tensor  # [T, 3, 3]
    position: Tensor  # [T, 3]


@dataclass(frozen=True)
class Camera:
    """A pinhole per frame: direction(u, v) = forward + u * right + v * up with |u| <= tan_x, |v| <= tan_y."""

    origin: Tensor  # [T, 3]
    right: Tensor  # [T, 3]
    up: Tensor  # [T, 3]
    forward: Tensor  # [T, 3]
    tan_x: float
    tan_y: float


def ease(seconds: Tensor) -> Tensor:
    """0 at 0 s, 1 at 4 s and later; quick at first so that one second already shows half of the way."""
    t = seconds.clamp(0.0, CLIP_SECONDS)
    return (1 - torch.exp(-t / 1.6)) / (1 - math.exp(-CLIP_SECONDS / 1.6))


def _turn(axis: int, angle: Tensor) -> Tensor:
    """Rotations about axis 1 (y) or 2 (z), [T, 3, 3]."""
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = [c, zero, s, zero, one, zero, -s, zero, c] if axis == 1 else [c, -s, zero, s, c, zero, zero, zero, one]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def _azimuth(scene: Scene) -> float:
    """Radians about the subject at which the camera stands, or begins to."""
    return scene.rand("cam_azimuth", -0.25, 0.25)


def _heading(scene: Scene) -> float:
    """Resting yaw in radians, or that from which it spins: then seen by the camera it is always the same."""
    spins = scene.motion == "spinning"
    swing, towards = (0.0, _azimuth(scene)) if spins else (scene.rand("heading", -1.0, 1.0), 0.0)
    if scene.subject in LOOKS_SIDEWAYS:
        turned = -0.28 + 0.32 * swing  # nose a little towards the camera
        return towards + (math.pi - turned if scene.motion == "moving left" else turned)
    if scene.subject in ALWAYS_TURNED:
        return towards + 0.55 + 0.22 * swing
    return towards + 0.55 * swing


def subject_pose(scene: Scene, seconds: Tensor, subject: Subject, aspect: float) -> Pose:
    """Pose of the subject at `seconds` [T]. `aspect` is width / height: wide frames allow longer travel."""
    zero = torch.zeros_like(seconds)
    e = ease(seconds)
    size = scene.rand("size", 0.85, 1.15)
    speed = scene.rand("speed", 0.95, 1.05)
    x, lift, scale, squash = zero + scene.rand("offset_x", -0.1, 0.1), zero, zero + size, zero
    roll, lean = zero, zero
    yaw = zero + _heading(scene)
    motion = scene.motion
    # What goes round begins at one place and turns one way, at one speed: a sentence says no phase, and a small model
    # that has to guess one draws all of them at once.
    if motion == "bouncing":
        lift = 0.42 * torch.sin(math.pi * seconds / (BOUNCE_SECONDS * speed)).abs()
        squash = 0.2 * (1 - lift / 0.12).clamp_min(0.0)
    elif motion == "spinning":
        yaw = yaw + 2 * math.pi * SPIN_TURNS_PER_SECOND * seconds
        lean = zero + SPIN_LEAN
    elif motion in ("moving left", "moving right"):
        reach = 0.44 * min(max(aspect, 1.0), 1.6)
        x = x * 0.5 + (1.0 if motion == "moving right" else -1.0) * reach * (2 * e - 1)
    elif motion == "growing":
        scale = size * (0.55 + 0.70 * e)
    elif motion == "shrinking":
        scale = size * (1.20 - 0.68 * e)
    elif motion == "swaying":
        swing = torch.sin(2 * math.pi * seconds / (SWAY_SECONDS * speed))
        roll, x = -0.32 * swing, x + 0.10 * swing
    elif motion == "rising":
        lift = 0.72 * e
    if scene.ground == "ocean":
        lift = lift - subject.float_depth * scale
    elif motion in ("swaying", "spinning"):
        # Rocking pivots on the base's middle; lifting by the sunk corner keeps it on the ground.
        foot = subject.hull[subject.hull[:, 1] < 0.1]
        half_base = float(foot[:, 0].abs().max()) if len(foot) else 0.0
        lift = lift + (roll.abs() + lean).sin() * half_base * size * 0.75
    stretch = 0.0 if scene.subject == "ball" else scene.rand("aspect", -0.06, 0.06)  # a little taller or a little wider
    shape = torch.diag(torch.tensor([1 - stretch, 1 + stretch, 1 - stretch]))
    linear = _turn(2, roll) @ _turn(1, yaw) @ _turn(2, lean) @ shape
    flatten = torch.stack([1 + 0.5 * squash, 1 - squash, 1 + 0.5 * squash], -1)
    linear = flatten[:, :, None] * linear * scale[:, None, None]
    return Pose(linear, torch.stack([x, lift, zero + scene.rand("offset_z", -0.1, 0.1)], -1))


def camera_path(scene: Scene, seconds: Tensor, aspect: float, distance: float, target_y: float) -> Camera:
    """The camera at `seconds` [T], standing `distance` units from its target."""
    e = ease(seconds)
    zero = torch.zeros_like(seconds)
    azimuth = zero + _azimuth(scene)
    elevation = scene.rand("cam_elevation", 0.08, 0.24)
    pan, reach = zero, zero + 1.0
    # A full pan after a travelling subject would cancel its travel in the image, and against it would double it.
    swing = 0.12 if scene.motion in ("moving left", "moving right") else 0.15
    if scene.camera == "pan left":
        pan = swing * (2 * e - 1)
    elif scene.camera == "pan right":
        pan = -swing * (2 * e - 1)
    elif scene.camera == "zoom in":
        reach = 1.38 - 0.50 * e
    elif scene.camera == "zoom out":
        reach = 0.88 + 0.50 * e
    elif scene.camera == "orbit":
        azimuth = azimuth + 0.50 * (2 * e - 1)
    flat = distance * reach * math.cos(elevation)
    origin = torch.stack(
        [flat * azimuth.sin(), target_y + distance * reach * math.sin(elevation), flat * azimuth.cos()], -1
    )
    view = azimuth + pan  # positive pan looks further left
    c, s = view.cos(), view.sin()
    ce, se = math.cos(elevation), math.sin(elevation)
    forward = torch.stack([-s * ce, zero - se, -c * ce], -1)
    right = torch.stack([c, zero, -s], -1)
    up = torch.stack([-s * se, zero + ce, -c * se], -1)
    tan_x, tan_y = TAN_HALF_SHORT * max(aspect, 1.0), TAN_HALF_SHORT * max(1.0 / aspect, 1.0)
    return Camera(origin, right, up, forward, tan_x, tan_y)


def project(camera: Camera, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """World points [T, K, 3] -> horizontal and vertical place in -1..1 (inside the frame) and depth, each [T, K]."""
    rel = points - camera.origin[:, None]
    depth = (rel * camera.forward[:, None]).sum(-1)
    x = (rel * camera.right[:, None]).sum(-1) / depth / camera.tan_x
    y = (rel * camera.up[:, None]).sum(-1) / depth / camera.tan_y
    return x, y, depth


def mirrored(camera: Camera) -> Camera:
    """The camera as the ground plane mirrors it: what it sees is what the ground reflects."""
    flip = torch.tensor([1.0, -1.0, 1.0])
    return Camera(
        camera.origin * flip, camera.right * flip, camera.up * flip, camera.forward * flip, camera.tan_x, camera.tan_y
    )


def framing(scene: Scene, subject: Subject, aspect: float) -> tuple[float, float]:
    """Camera distance and target height that keep the whole subject in frame during a whole clip."""
    seconds = torch.linspace(0.0, CLIP_SECONDS, 33)
    pose = subject_pose(scene, seconds, subject, aspect)
    points = torch.einsum("tij,kj->tki", pose.linear, subject.hull) + pose.position[:, None]
    target_y = 0.5 * float(points[..., 1].max()) * scene.rand("cam_target", 0.92, 1.12)
    distance = NOMINAL_DISTANCE
    for _ in range(24):
        x, y, _ = project(camera_path(scene, seconds, aspect, distance, target_y), points)
        if float(x.abs().max()) < 0.92 and float(y.abs().max()) < 0.92:
            break
        distance *= 1.04
    return distance, target_y


def place(scene: Scene, seconds: Tensor, subject: Subject, aspect: float) -> tuple[Pose, Camera]:
    """Pose and camera at `seconds` [T], framed for the aspect ratio."""
    distance, target_y = framing(scene, subject, aspect)
    pose = subject_pose(scene, seconds, subject, aspect)
    return pose, camera_path(scene, seconds, aspect, distance, target_y)
