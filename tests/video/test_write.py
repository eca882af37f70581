"""Writing: what the file is, that its colours are true, and that nothing is left when something fails."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from soragen.errors import InputError, NumericalError, OutputError, ResourceError, SoragenError
from soragen.size import VideoSize
from soragen.video import ffmpeg as ffmpeg_file
from soragen.video import write as write_file
from soragen.video.boxes import top_boxes
from soragen.video.facts import video_facts
from soragen.video.read import read_video
from soragen.video.write import check_output, to_uint8, write_video

PATCHES = torch.tensor(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [255, 255, 255], [0, 0, 0], [200, 100, 50], [255, 255, 0]],
    dtype=torch.uint8,
)


def frames_of(size: VideoSize, chunk: int = 4) -> Iterator[Tensor]:
    """Grey frames that grow brighter."""
    for start in range(0, size.num_frames, chunk):
        count = min(chunk, size.num_frames - start)
        shade = (torch.arange(start, start + count) * 3 % 256).to(torch.uint8)
        yield shade[:, None, None, None].expand(count, size.height, size.width, 3)


def living() -> list[tuple[int, int, int]]:
    """(process, its parent, its session) of all that run; none where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _group, session = entry.read_text().rpartition(") ")[2].split()[:4]
        except OSError:  # it has ended meanwhile
            continue
        if state != "Z":
            found.append((int(entry.parent.name), int(parent), int(session)))
    return found


def children() -> set[int]:
    return {process for process, parent, _ in living() if parent == os.getpid()}


@pytest.fixture
def clean(tmp_path: Path) -> Iterator[Path]:
    """A folder; after the test it is empty and no process has been left, whatever went wrong."""
    before = children()
    yield tmp_path
    assert list(tmp_path.iterdir()) == []
    assert children() <= before


@pytest.mark.parametrize(
    "size",
    [
        VideoSize(64, 64, 1, Fraction(24)),
        VideoSize(128, 72, 31, Fraction(30000, 1001)),
        VideoSize(640, 360, 9, Fraction("29.97")),
        VideoSize(64, 96, 5, Fraction(1, 2)),
        VideoSize(64, 64, 7, Fraction(240)),
    ],
    ids=str,
)
def test_file_is_what_every_player_reads(tmp_path: Path, size: VideoSize) -> None:
    done: list[int] = []
    path = write_video(tmp_path / "a.mp4", frames_of(size), size, recipe=None, on_frames=done.append)
    facts = video_facts(path)
    assert (facts.codec, facts.profile, facts.pix_fmt) == ("h264", "High", "yuv420p")
    assert facts.colour.split(", ")[:2] == [
        "tv",
        "bt709",
    ]  # all three of matrix, primaries and transfer, or it is a/b/c
    assert (facts.width, facts.height, facts.num_frames) == (size.width, size.height, size.num_frames)
    assert facts.constant_fps and facts.fps == size.fps and facts.seconds == size.seconds
    order = [box.kind for box in top_boxes(path)]
    assert order.index(b"moov") < order.index(b"mdat")
    assert done[-1] == size.num_frames and done == sorted(done)
    assert list(tmp_path.iterdir()) == [path]


def test_duration_in_the_file_is_exact(tmp_path: Path) -> None:
    size = VideoSize(64, 64, 7, Fraction(24000, 1001))
    path = write_video(tmp_path / "a.mp4", frames_of(size), size, recipe=None)
    data = path.read_bytes()
    head = data.index(b"mvhd") + 4 + 12  # version and flags, two dates
    ticks, duration = int.from_bytes(data[head : head + 4]), int.from_bytes(data[head + 4 : head + 8])
    assert Fraction(duration, ticks) == size.seconds


def test_colours_survive(tmp_path: Path) -> None:
    wide = PATCHES.repeat_interleave(16, 0)  # [128, 3]
    size = VideoSize(128, 64, 3, Fraction(24))
    path = write_video(tmp_path / "a.mp4", [wide.expand(3, 64, 128, 3)], size, recipe=None)
    ours = torch.cat(list(read_video(path)[1]))
    command = [ffmpeg_file.find_ffmpeg(), "-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24"]
    raw = subprocess.run([*command, "pipe:1"], capture_output=True, check=True).stdout
    theirs = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(3, 64, 128, 3)
    for frames in (ours, theirs):
        middles = frames.view(3, 64, 8, 16, 3)[:, 8:-8, :, 6:-6].float().mean((0, 1, 3))
        assert (middles - PATCHES.float()).abs().max() <= 4


def test_colour_is_not_shifted_sideways(tmp_path: Path) -> None:
    """Half a pixel of shift, what the scaler does when it is not told where colour lies, would be 2 levels here."""
    red = torch.full((64, 64, 3), 100, dtype=torch.uint8)
    red[..., 0] = torch.arange(64) * 4
    size = VideoSize(64, 64, 1, Fraction(24))
    path = write_video(tmp_path / "a.mp4", [red[None]], size, recipe=None)
    frames = torch.cat(list(read_video(path)[1]))
    assert abs((frames.float() - red.float())[0, 8:-8, 8:-8, 0].mean()) < 0.5


def test_small_frames_are_enlarged_in_the_stream(tmp_path: Path) -> None:
    small = PATCHES[:4].view(2, 2, 3).repeat_interleave(32, 0).repeat_interleave(32, 1)  # [64, 64, 3]
    size = VideoSize(192, 256, 2, Fraction(24))
    path = write_video(tmp_path / "a.mp4", [small.expand(2, 64, 64, 3)], size, recipe=None, scale_from=(64, 64))
    facts = video_facts(path)
    assert (facts.width, facts.height) == (192, 256)
    frame = torch.cat(list(read_video(path)[1]))[0].float()
    middles = frame[64::128, 48::96].reshape(4, 3)
    assert (middles - PATCHES[:4].float()).abs().max() <= 4


def test_same_frames_same_bytes(tmp_path: Path) -> None:
    size = VideoSize(64, 64, 5, Fraction(24))
    one, two = (write_video(tmp_path / name, frames_of(size), size, recipe={"n": 1}) for name in ("a.mp4", "b.mp4"))
    assert one.read_bytes() == two.read_bytes()


SIZE = VideoSize(64, 64, 40, Fraction(24))


@pytest.mark.parametrize("error", [RuntimeError("decoder"), KeyboardInterrupt(), OSError("latents")])
def test_exception_in_the_frames_comes_through_and_leaves_nothing(clean: Path, error: BaseException) -> None:
    def failing() -> Iterator[Tensor]:
        for number, chunk in enumerate(frames_of(SIZE)):
            if number == 3:
                raise error
            yield chunk

    with pytest.raises(type(error)) as caught:
        write_video(clean / "a.mp4", failing(), SIZE, recipe={})
    assert caught.value is error


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (torch.zeros(39, 64, 64, 3, dtype=torch.uint8), "39 frames where 40"),
        (torch.zeros(41, 64, 64, 3, dtype=torch.uint8), "more than the 40"),
        (torch.zeros(40, 64, 66, 3, dtype=torch.uint8), "66"),
        (torch.zeros(40, 3, 64, 64, dtype=torch.uint8), "3, 64, 64"),
        (torch.zeros(40, 64, 64, 3), "float32"),
        (torch.zeros(64, 64, 3, dtype=torch.uint8), "promised"),
    ],
)
def test_wrong_frames_are_refused(clean: Path, frames: Tensor, words: str) -> None:
    with pytest.raises(SoragenError, match=words):
        write_video(clean / "a.mp4", [frames], SIZE, recipe=None)


def fake_ffmpeg(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "fake"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


@pytest.mark.skipif(os.name != "posix", reason="the program in the middle is a shell script")
@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("head -c 20000 >/dev/null; kill -9 $$", OutputError, "signal 9"),
        ("echo '[x @ 0x1] [error] the encoder broke' >&2; exit 3", OutputError, "the encoder broke"),
        ("echo '[error] No space left on device' >&2; exit 1", ResourceError, "disk is full"),
        ("cat >/dev/null; head -c 300000 /dev/zero >&2; exit 1", OutputError, "ffmpeg could not"),  # a pipe holds 64 KB
    ],
)
def test_ffmpeg_that_fails_is_reported(
    clean: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    error: type[SoragenError],
    words: str,
) -> None:
    fake_ffmpeg(tmp_path_factory.mktemp("bin"), script, monkeypatch)
    with pytest.raises(error, match=words):
        write_video(clean / "a.mp4", frames_of(SIZE), SIZE, recipe={})


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the child in /proc")
def test_ffmpeg_killed_from_outside(clean: Path) -> None:
    before = children()

    def frames() -> Iterator[Tensor]:
        for number, chunk in enumerate(frames_of(SIZE)):
            if number == 3:
                for process in children() - before:
                    os.kill(process, signal.SIGKILL)
            yield chunk

    with pytest.raises(OutputError, match="signal 9"):
        write_video(clean / "a.mp4", frames(), SIZE, recipe={})


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_while_ffmpeg_does_not_read(
    clean: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: Python waits in a write to a pipe that nobody empties."""
    folder = tmp_path_factory.mktemp("bin")
    fake_ffmpeg(folder, f"echo $$ > {folder}/started; mv {folder}/started {folder}/pid; sleep 60 & wait", monkeypatch)
    size = VideoSize(640, 640, 4000, Fraction(24))
    sessions: list[int] = []

    def interrupt() -> None:
        while not (folder / "pid").exists():
            time.sleep(0.02)
        time.sleep(0.2)
        sessions.append(os.getsid(int((folder / "pid").read_text())))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        write_video(clean / "a.mp4", frames_of(size), size, recipe={})
    thread.join()
    assert sessions[0] != os.getsid(0)  # Ctrl-C in a terminal does not reach ffmpeg
    assert sessions[0] not in {session for _, _, session in living()}  # and no part of it is left


def test_existing_file_is_kept(tmp_path: Path) -> None:
    size = VideoSize(64, 64, 2, Fraction(24))
    path = tmp_path / "a.mp4"
    path.write_bytes(b"mine")
    assert write_video(path, frames_of(size), size, recipe=None) == tmp_path / "a-2.mp4"
    assert path.read_bytes() == b"mine" and video_facts(tmp_path / "a-2.mp4").num_frames == 2
    assert write_video(path, frames_of(size), size, recipe=None, overwrite=True) == path
    assert video_facts(path).num_frames == 2 and len(list(tmp_path.iterdir())) == 2


def test_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError("not supported")

    monkeypatch.setattr(write_file.os, "link", no_link)
    size = VideoSize(64, 64, 2, Fraction(24))
    (tmp_path / "a.mp4").write_bytes(b"mine")
    path = write_video(tmp_path / "a.mp4", frames_of(size), size, recipe=None)
    assert path.name == "a-2.mp4" and video_facts(path).num_frames == 2 and len(list(tmp_path.iterdir())) == 2


def test_check_leaves_nothing_behind(clean: Path) -> None:
    check_output(clean / "a.mp4", size=VideoSize(1920, 1080, 480, Fraction(24)))
    check_output(clean / "-lavfi %d 'é😀.MP4")


def test_check_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken.mp4"
    taken.write_bytes(b"mine")
    link = tmp_path / "broken.mp4"
    link.symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.mp4").mkdir()
    size = VideoSize(64, 64, 9, Fraction(24))
    for path, error, words in [
        (taken, OutputError, "exists already"),
        (link, OutputError, "exists already"),
        (tmp_path / "folder.mp4", OutputError, "is a folder"),
        (tmp_path / "no" / "a.mp4", OutputError, "does not exist"),
        (taken / "a.mp4", OutputError, "not a folder"),
        (tmp_path / ("x" * 300 + ".mp4"), OutputError, "name"),
        (tmp_path / "nul\0.mp4", OutputError, "null"),
        (tmp_path / "a.avi", InputError, r"'\.avi'"),
        (tmp_path / "a", InputError, "no ending"),
    ]:
        with pytest.raises(error, match=words) as caught:
            check_output(path, size=size)
        assert "\n" not in caught.value.message and caught.value.hint
    for wrong in (VideoSize(65, 64, 9, Fraction(24)), VideoSize(64, 64, 9, Fraction(2997003, 125000))):
        with pytest.raises(InputError):
            check_output(tmp_path / "a.mp4", size=wrong)
    with pytest.raises(ResourceError, match="free"):
        check_output(tmp_path / "a.mp4", size=VideoSize(4096, 4096, 10**9, Fraction(24)))
    check_output(taken, size=size, overwrite=True)
    assert taken.read_bytes() == b"mine"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "missing"))
    with pytest.raises(OutputError, match="ffmpeg is missing") as caught:
        check_output(tmp_path / "a.mp4")
    assert "imageio-ffmpeg" in (caught.value.hint or "")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["broken.mp4", "folder.mp4", "taken.mp4"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is the folder in which nobody may write")
def test_check_finds_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(OutputError, match="cannot write in /proc"):
        check_output(Path("/proc/a.mp4"))


@pytest.mark.skipif(os.name != "posix", reason="there are no such files")
def test_device_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(OutputError, match="ordinary"):
        check_output(tmp_path / "pipe.mp4", overwrite=True)


def test_to_uint8_rounds_and_refuses_what_is_not_a_number() -> None:
    levels = torch.arange(256).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_uint8(levels / 255 + 0.4 / 255).int(), levels.int())
    assert to_uint8(torch.tensor([-0.1, 1.2, 0.5], dtype=torch.bfloat16)).tolist() == [0, 255, 128]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NumericalError):
            to_uint8(torch.tensor([0.5, bad]))
