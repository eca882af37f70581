"""One file from an address to the disk, through anything that may happen on the way.

The bytes go into NAME.part. What is there when a connection, or the process, ends is gone on from: size and hash decide
what is right, never a tag that a server may send. A file gets its name when its hash is right, and not before.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from soragen.errors import ResourceError, WeightsError
from soragen.installed import File
from soragen.models import hub
from soragen.models.hub import Passing, RemoteFile

CHUNK = 2**20
GO_ON = "run it again: it goes on where it stopped"

OnBytes = Callable[[int], None]
"""Called with the number of bytes that are there now and were not before; negative when some were thrown away."""


class Refused(Exception):
    """The server answered with an error that does not pass. code: of HTTP."""

    def __init__(self, code: int) -> None:
        super().__init__(f"it answered {code}")
        self.code = code


def download(url: str, headers: Mapping[str, str], file: RemoteFile, target: Path, on_bytes: OnBytes) -> File:
    """Puts `file` at `target` and returns its size and hash. A part that is there already is gone on from.

    Raises Refused, WeightsError when the content is wrong twice or no more comes, ResourceError for a full disk.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            digests = _fetch(url, headers, file, part, on_bytes)
            if digests.fits(file):
                _keep(part, target)
                return File(file.path, file.size, digests.sha256.hexdigest())
            on_bytes(-part.stat().st_size)
            part.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"the disk is full: {target.parent}", f"make room, then {GO_ON}") from error
        raise ResourceError(f"cannot write {part}: {error.strerror}", "set SORAGEN_MODELS to another folder") from error
    raise WeightsError(
        f"{file.path} came with the wrong content twice: its hash is not {file.sha256 or file.git_sha1}",
        "try again later, or another --endpoint",
    )


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Digests:
    """The hashes of a file, as its bytes come: SHA-256, and what git would call it if the hub keeps it in git."""

    def __init__(self, file: RemoteFile) -> None:
        self.sha256: Digest = hashlib.sha256()
        self.git: Digest | None = None
        if file.git_sha1:
            header = f"blob {file.size}\0".encode()
            algorithm = "sha1" if len(file.git_sha1) == 40 else "sha256"
            self.git = hashlib.new(algorithm, header, usedforsecurity=False)
        self.size = 0

    def update(self, data: bytes) -> None:
        self.size += len(data)
        self.sha256.update(data)
        if self.git is not None:
            self.git.update(data)

    def fits(self, file: RemoteFile) -> bool:
        if self.size != file.size:
            return False
        if file.sha256:
            return self.sha256.hexdigest() == file.sha256.lower()
        return self.git is None or self.git.hexdigest() == file.git_sha1.lower()


def read_digests(path: Path, file: RemoteFile, on_bytes: OnBytes = lambda _: None) -> Digests:
    """The hashes of what is at `path`."""
    digests = Digests(file)
    with path.open("rb") as stream:
        while data := stream.read(CHUNK):
            digests.update(data)
            on_bytes(len(data))
    return digests


def reuse(source: Path, target: Path) -> bool:
    """Makes the file at `source` the one at `target` without a copy: a hard link, a symbolic one across disks."""
    source = source.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and source.samefile(target):
        return True
    temporary = target.with_name(target.name + ".link")
    temporary.unlink(missing_ok=True)
    for link in (os.link, os.symlink):
        with contextlib.suppress(OSError):
            link(source, temporary)
            os.replace(temporary, target)
            temporary.unlink(missing_ok=True)  # a rename onto another name of the same file leaves both
            return True
    return False


def check_access(url: str, headers: Mapping[str, str]) -> None:
    """Asks for a file without reading it. Raises Refused, or WeightsError when no answer comes."""

    def ask() -> None:
        with _open(url, headers, "HEAD"):
            pass

    hub.patiently(ask, f"{urlsplit(url).netloc} cannot be reached", "check the network, or name a mirror by --endpoint")


def read_start(url: str, headers: Mapping[str, str], count: int) -> bytes:
    """The first `count` bytes of a file, or all of a shorter one. Asked for once, without patience: raises Passing,
    Refused.
    """
    with _open(url, {**headers, "Range": f"bytes=0-{count - 1}"}, "GET") as response:
        try:
            return bytes(response.read(count))
        except (OSError, http.client.HTTPException) as error:
            raise Passing(f"the connection broke ({type(error).__name__})") from error


def _fetch(url: str, headers: Mapping[str, str], file: RemoteFile, part: Path, on_bytes: OnBytes) -> Digests:
    """Brings the part to its full size, connection after connection. Patience is for attempts that bring nothing."""
    if part.is_file() and part.stat().st_size > file.size:
        part.unlink()
    digests = read_digests(part, file, on_bytes) if part.is_file() else Digests(file)
    with part.open("ab") as stream:
        while digests.size < file.size:

            def go_on() -> None:
                before = digests.size
                try:
                    _append(url, headers, file, stream, digests, on_bytes)
                except Passing:
                    if digests.size == before:
                        raise

            hub.patiently(go_on, f"{file.path} stopped at {digests.size:,} of {file.size:,} bytes", GO_ON)
    return digests


def _append(
    url: str, headers: Mapping[str, str], file: RemoteFile, stream: IO[bytes], digests: Digests, on_bytes: OnBytes
) -> None:
    """One connection: from what is there to its end, or the file's. Raises Passing, Refused."""
    have = digests.size
    wanted = {**headers, "Range": f"bytes={have}-"} if have else headers
    with _open(url, wanted, "GET") as response:
        skip = have if response.status == 200 else 0  # a server that knows no ranges sends all from the start
        if response.status == 206:
            first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            if first != str(have):
                raise Passing(f"it sent bytes from {first or 'nowhere'}, not from {have}")
        while digests.size < file.size:
            try:
                data = response.read1(CHUNK)  # what has come, without waiting for more of it
            except (OSError, http.client.HTTPException) as error:
                raise Passing(f"the connection broke ({type(error).__name__})") from error
            if not data:
                raise Passing("the connection ended early")
            skipped = min(skip, len(data))
            skip -= skipped
            data = data[skipped : skipped + file.size - digests.size]
            if data:
                stream.write(data)
                stream.flush()
                digests.update(data)
                on_bytes(len(data))


def _open(url: str, headers: Mapping[str, str], method: str) -> Any:
    """An answer with a body to read. Raises Passing for what may pass, Refused for what does not."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        return _opener().open(request, timeout=hub.TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            signed = (
                urlsplit(error.url).netloc != urlsplit(url).netloc
            )  # a link that expires; asking again makes a new one
            if error.code in (408, 416, 429) or error.code >= 500 or (signed and error.code in (401, 403, 404)):
                raise Passing(f"it answered {error.code}", hub.retry_after(error.headers.get("Retry-After"))) from error
            raise Refused(error.code) from error
    except (OSError, http.client.HTTPException) as error:
        raise Passing(f"{type(error).__name__}: {error}") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows the hub to where its files lie. The token stays behind at another host; encryption is never given up."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if before.scheme == "https" and after.scheme != "https":
            raise WeightsError(f"{before.netloc} leads to an address without encryption", "use another --endpoint")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()
            if (before.scheme, before.netloc) != (after.scheme, after.netloc):
                request.remove_header("Authorization")
        return request


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError, OSError):
        import certifi

        context.load_verify_locations(certifi.where())  # beside the system's, which some Pythons come without
    return urllib.request.build_opener(_Redirects, urllib.request.HTTPSHandler(context=context))


def _keep(part: Path, target: Path) -> None:
    """Gives a complete part its name, after its bytes are on the disk."""
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(part, target)
