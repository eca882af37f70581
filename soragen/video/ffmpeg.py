"""The ffmpeg program: where it is, how it opens a file safely, and one run of it that always ends with its block."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from soragen.errors import InputError, OutputError
from soragen.leftovers import leftover

# Containers that hold pictures themselves. Playlists (hls, concat, dash) name other files, and ffmpeg draws a text file
# as a terminal ("tty"): neither is wanted here.
_CONTAINERS = (
    "mov,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,flv,asf,ogg,ivf,yuv4mpegpipe,nut,h264,hevc,av1,"
    "webp_anim,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,jpegxl_pipe"
)

# "[mov @ 0x55e] [error] moov atom not found": who says it, how bad it is, what.
_LINE = re.compile(r"^(?:\[[^\]]* @ [^\]]*\] )*(?:\[(\w+)\] )?(.*)", re.DOTALL)
_UNSAID = re.compile(r"^Error opening input: |(?<=on whitelist) '.*'")  # what the reader of one line can do without
# Lines that only repeat that something went wrong.
_ECHO = re.compile(r"Error opening (input|output) files?\b|Terminating thread|Task finished|Conversion failed")


def find_ffmpeg() -> str:
    """The path of ffmpeg: IMAGEIO_FFMPEG_EXE, or the one inside imageio-ffmpeg, or the system's. Raises OutputError."""
    import imageio_ffmpeg

    hint = "run `pip install imageio-ffmpeg`, or set IMAGEIO_FFMPEG_EXE to the path of an ffmpeg program"
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise OutputError("ffmpeg is missing", hint) from None
    found = shutil.which(program)
    if found is None:
        raise OutputError(f"ffmpeg is missing: {program} is not a program", hint)
    return str(found)


def local_file(path: Path) -> Path:
    """`path` if it is a file on this machine with something in it. Raises InputError."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            raise InputError(f"{path} is not a file on this machine", "download it, and give the path") from None
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        wrong = f"no file {path}" if missing else f"cannot read {str(path)!r}: {error}"
        raise InputError(wrong, "give the path of a video or an image") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'not a file'}", "give the path of a video")
    if status.st_size == 0:
        raise InputError(f"{path} is empty", "the file holds no bytes: make or download it again")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read", "change its permissions")
    return path


def has_filters(*names: str) -> bool:
    """Whether the program was built with all of these filters."""
    listed = subprocess.run(
        [find_ffmpeg(), "-hide_banner", "-filters"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return set(names) <= set(listed.stdout.decode("utf-8", "replace").split())


# Reads the file that is given as stdin and can open no other; its name, which may be "-x" or "%d.png", is never seen.
INPUT = ("-protocol_whitelist", "fd", "-format_whitelist", _CONTAINERS, "-i", "fd:")


def named_input(path: Path) -> list[str]:
    """Reads a file beside the one at stdin: by its name, taken as it is, and able to open no other kind of thing."""
    whole = f"file:{path.absolute()}"
    return ["-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS, "-i", whole]


class Ffmpeg:
    """One run of ffmpeg, killed when its `with` block is left early.

    It has a session of its own, so that Ctrl-C in the terminal reaches Python alone, which then ends it: ffmpeg would
    otherwise finish a half file in good order. Its stderr is drained all the time; what went wrong is kept in `errors`,
    the rest in `log`, the last lines of each.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: int | BinaryIO = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        level: str = "error",
    ) -> None:
        general = ["-hide_banner", "-nostdin", "-nostats", "-loglevel", f"level+{level}"]
        self._command = [find_ffmpeg(), *general, *arguments]
        self._stdin, self._stdout = stdin, stdout
        self.log: deque[str] = deque(maxlen=1000)
        self.errors: deque[str] = deque(maxlen=20)
        self._registered = contextlib.ExitStack()

    def __enter__(self) -> Ffmpeg:
        try:
            self.process = subprocess.Popen(
                self._command,
                stdin=self._stdin,
                stdout=self._stdout,
                stderr=subprocess.PIPE,
                start_new_session=os.name == "posix",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise OutputError(f"ffmpeg does not start: {error}", "reinstall imageio-ffmpeg") from None
        self._registered.enter_context(leftover(self._kill))
        self._drain = threading.Thread(target=self._read_log, daemon=True)
        self._drain.start()
        return self

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                level, text = _LINE.findall(line.decode("utf-8", "replace").rstrip())[0]
                (self.errors if level in ("error", "fatal", "panic") else self.log).append(text)

    def failure(self) -> str | None:
        """Waits for the end. None when all went well, else ffmpeg's reason."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):  # it has ended already: its exit status says why
                self.process.stdin.close()
        status = self.process.wait()
        self._drain.join()
        if status == 0:
            return None
        reasons = [_UNSAID.sub("", text) for text in self.errors if not _ECHO.match(text)]
        ended = f"it ended with signal {-status}" if status < 0 else f"it ended with status {status}"
        return "; ".join(dict.fromkeys(reasons[:3])) or (self.log[-1] if self.log else ended)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended (macOS says the latter)
            if os.name == "posix":
                os.killpg(self.process.pid, signal.SIGKILL)  # with whatever a wrapper script started
            else:
                self.process.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registered.close()
        if self.process.poll() is None:
            self._kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=2)
        self._drain.join(timeout=0.5)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
