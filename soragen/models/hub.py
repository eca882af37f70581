"""What a hub says of a repository: its commit, its files with sizes and hashes, where they lie, who may read them.

huggingface_hub knows the hub's addresses, the user's token and the shared cache; the bytes are read in download.py.
This is the only place that talks to a hub, and it is used by `models pull` alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from soragen import __version__
from soragen.errors import InputError, WeightsError

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to wait before each further attempt while nothing comes."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as dead."""

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. sha256: "" for small files that the hub keeps in git; git_sha1 is of those."""

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""


@dataclass(frozen=True)
class Repository:
    """source: "owner/name". revision: a commit. endpoint: of the hub or its mirror."""

    source: str
    revision: str
    endpoint: str
    files: tuple[RemoteFile, ...]

    def url(self, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.source, path, revision=self.revision, endpoint=self.endpoint)


def default_endpoint() -> str:
    """The hub, or the mirror in HF_ENDPOINT."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def request_headers(endpoint: str) -> dict[str, str]:
    """What is sent with each request; the user's token, too, but never unencrypted to another machine."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    address = urlsplit(endpoint)
    unencrypted = address.scheme != "https" and address.hostname not in ("127.0.0.1", "::1", "localhost")
    headers = build_hf_headers(
        token=False if unencrypted else None, library_name="soragen", library_version=__version__
    )
    return {name: str(value) for name, value in headers.items()}


def look_up(source: str, revision: str, endpoint: str) -> Repository:
    """The repository at `revision` ("" for the newest) and all of its files.

    Raises InputError for an endpoint that is none, WeightsError when it is not there, not for this user, or the hub
    does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not endpoint.startswith(("https://", "http://")):
        raise InputError(f"{endpoint!r} is not the address of a hub", "write https://HOST")
    headers = request_headers(endpoint)
    api = HfApi(endpoint=endpoint, token=None if "authorization" in {name.lower() for name in headers} else False)

    def ask() -> Any:
        try:
            return api.model_info(source, revision=revision or None, files_metadata=True, timeout=TIMEOUT)
        except GatedRepoError as error:
            raise no_access(source, endpoint, 403) from error
        except RevisionNotFoundError as error:
            raise WeightsError(f"{source} has no revision {revision}", "correct it in your weights.toml") from error
        except RepositoryNotFoundError as error:  # the hub answers 401 for a name that it does not want to speak of
            raise no_access(source, endpoint, 404) from error
        except HFValidationError as error:
            raise InputError(f"{source!r} is not a repository", "write OWNER/NAME") from error
        except HfHubHTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            if code in (401, 403, 404):
                raise no_access(source, endpoint, code) from error
            if code == 429 or code >= 500:
                raise Passing(f"it answered {code}", retry_after(error.response.headers.get("Retry-After"))) from error
            raise WeightsError(f"{endpoint} answered {code} for {source}", "try again later, or --endpoint") from error
        except Exception as error:  # the client's own errors of connection, which differ from version to version
            raise Passing(f"{type(error).__name__}: {error}") from error

    info = patiently(ask, f"{endpoint} cannot be reached", "check the network, or name a mirror with --endpoint")
    files = []
    for sibling in info.siblings or ():
        lfs = sibling.lfs
        if sibling.size is None or not (lfs or sibling.blob_id):
            raise WeightsError(f"{endpoint} lists {source} without sizes and hashes", "use another --endpoint")
        sha256, git_sha1 = (lfs.sha256, "") if lfs else ("", sibling.blob_id or "")
        files.append(RemoteFile(sibling.rfilename, sibling.size, sha256, git_sha1))
    return Repository(source, info.sha or revision or "main", endpoint, tuple(files))


def no_access(source: str, endpoint: str, code: int) -> WeightsError:
    """What to do when a repository is not given to this user. code: 401, 403 (it is gated), 404 (or not there)."""
    page = f"{endpoint}/{source}"
    token = f"make a token at {endpoint}/settings/tokens, then set HF_TOKEN to it or run `hf auth login`"
    if code == 404:
        return WeightsError(f"{page} is not there, or not for you", f"check the name; if it is private, {token}")
    return WeightsError(
        f"{source} is gated: its publisher gives it only to who agreed to the terms on its page",
        f"open {page}, sign in and agree; {token}; then pull again",
    )


class Passing(Exception):
    """A failure that may pass. wait: seconds that the other side asks for."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


def patiently(attempt: Callable[[], T], what: str, hint: str) -> T:
    """What `attempt` returns. While it raises Passing it is called again, after each of WAITS. Raises WeightsError."""
    for wait in (*WAITS, None):
        try:
            return attempt()
        except Passing as failure:
            if wait is None:
                raise WeightsError(f"{what}: {failure}", hint) from failure
            time.sleep(max(wait, failure.wait))
    raise AssertionError


def retry_after(header: str | None) -> float:
    """Of a Retry-After header, at most a minute; 0 where it says none."""
    return min(float(header), 60.0) if header and header.isdigit() else 0.0


def in_shared_cache(source: str, path: str, revision: str) -> Path | None:
    """The file in the cache that huggingface_hub's users share, if another program left it there.

    revision: "" for what was the newest when it was left there.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, path, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def snapshot_in_shared_cache(source: str, revision: str) -> Path | None:
    """The folder of a repository in the shared cache, found without a network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
