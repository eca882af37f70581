"""A small checkpoint, and a hub on 127.0.0.1 that serves it and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = "someone/tiny"
WEIGHTS = f"""
[tiny]
like = "wan2.1-t2v-1.3b"
description = "for a test"
source = "{SOURCE}"
revision = "{COMMIT}"
signature = {{ "transformer.num_layers" = 2 }}
"""
BIG = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"


def a_checkpoint(num_layers: int = 2) -> dict[str, bytes]:
    """The files of a repository, those that nobody needs among them."""
    generator = torch.Generator().manual_seed(0)

    def weights(*names: str, size: int = 64) -> bytes:
        return save({name: torch.randn(size, size, generator=generator) for name in names})

    def config(**values: Any) -> bytes:
        return json.dumps(values).encode()

    part = "transformer/diffusion_pytorch_model"
    return {
        "model_index.json": config(transformer=["diffusers", "WanTransformer3DModel"], vae=["diffusers", "X"]),
        "scheduler/scheduler_config.json": config(flow_shift=3.0),
        "transformer/config.json": config(_class_name="WanTransformer3DModel", num_layers=num_layers),
        f"{part}.safetensors.index.json": config(
            weight_map={"a": BIG.split("/")[1], "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}
        ),
        BIG: weights("a", size=700),
        f"{part}-00002-of-00002.safetensors": weights("b"),
        "vae/config.json": config(z_dim=16),
        "vae/diffusion_pytorch_model.safetensors": weights("v"),
        "vae/diffusion_pytorch_model.fp16.safetensors": weights("v"),
        "text_encoder/config.json": config(d_model=64),
        "text_encoder/model.safetensors": weights("shared.weight"),
        "tokenizer/tokenizer.json": config(version="1.0"),
        "tokenizer/spiece.model": b"pieces",
        "text_encoder/pytorch_model.bin": b"a pickle",
        "vae/run_me.py": b"raise SystemExit",
        "README.md": b"# tiny",
        ".gitattributes": b"",
        "tiny.safetensors": weights("whole"),
    }


NEEDED = {
    path
    for path in a_checkpoint()
    if path.endswith((".json", ".safetensors")) and ".fp16." not in path and path != "tiny.safetensors"
}


def in_shared_cache(cache: Path, source: str, files: dict[str, bytes]) -> Path:
    """A repository's files as huggingface_hub would have left them. Returns the folder of the repository."""
    repository = cache / f"models--{source.replace('/', '--')}"
    for path, data in files.items():
        blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = repository / "snapshots" / COMMIT / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Hub:
    """files: by path. What goes wrong, by path, one entry per request: `cut` ends a connection after so many bytes,
    `stall` keeps it silent for so many seconds, `status` answers instead, `corrupt` is how often other bytes are sent.

    listing: statuses before the list of files is given. refusal: of every file, to any request. blind: of requests for
    the start of a file, which are no fetches. token: needed for files. elsewhere: where files really lie.
    others: the files of further repositories, by name; nothing goes wrong with those.
    """

    files: dict[str, bytes]
    others: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    status: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    corrupt: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    listing: list[int] = field(default_factory=list)
    refusal: int = 0
    blind: int = 0
    knows_ranges: bool = True
    token: str = ""
    elsewhere: str = ""
    stall: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    throttle: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    url: str = ""

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fetched(self, path: str = "") -> list[Asked]:
        """The requests for whole files, or for all from a byte on."""
        gets = [one for one in self.asked if one.method == "GET" and "/resolve/" in one.path]
        return [one for one in gets if one.path.endswith(path) and not _start_of(one.headers.get("range"))]

    def list_files(self, source: str = SOURCE) -> dict[str, Any]:
        siblings = []
        for path, data in self.others.get(source, self.files).items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(data)}
            entry["blobId"] = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            if path.endswith((".safetensors", ".bin", ".model")):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 135}
            siblings.append(entry)
        return {"id": source, "modelId": source, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}


def _start_of(range_header: str | None) -> int:
    """How many bytes are asked for, where it is the start of a file; else 0."""
    last = (range_header or "").removeprefix("bytes=0-")
    return int(last) + 1 if last.isdigit() else 0


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.0"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        hub.asked.append(Asked(self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        if path.startswith("/api/models/"):
            if hub.listing:
                self.answer(hub.listing.pop(0))
            elif (source := path.removeprefix("/api/models/").removesuffix(f"/revision/{COMMIT}")) in hub.others:
                self.answer(200, json.dumps(hub.list_files(source)).encode())
            elif path == f"/api/models/{SOURCE}/revision/{COMMIT}":
                self.answer(200, json.dumps(hub.list_files()).encode())
            elif path.startswith(f"/api/models/{SOURCE}/"):
                self.answer(404, error="RevisionNotFound")
            else:
                self.answer(401, error="RepoNotFound")
        elif path.startswith(start := f"/{SOURCE}/resolve/{COMMIT}/"):
            self.file(path.removeprefix(start))
        elif found := [at for source in hub.others if path.startswith(at := f"/{source}/resolve/{COMMIT}/")]:
            self.file(path.removeprefix(found[0]), hub.others[found[0].split("/resolve/")[0].strip("/")])
        else:
            self.answer(404)

    def file(self, name: str, files: dict[str, bytes] | None = None) -> None:
        hub = self.hub
        files = hub.files if files is None else files
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.answer(401, error="GatedRepo")
        if hub.refusal:
            return self.answer(hub.refusal)
        if hub.elsewhere:
            return self.answer(302, location=hub.elsewhere + self.path)
        if name not in files:
            return self.answer(404, error="EntryNotFound")
        if start := _start_of(self.headers.get("Range")):
            return self.answer(hub.blind) if hub.blind else self.answer(206, files[name][:start])
        if self.command == "GET" and hub.status[name]:
            return self.answer(hub.status[name].pop(0))
        data, first = files[name], 0
        if self.command == "GET" and hub.corrupt[name]:
            hub.corrupt[name] -= 1
            data = bytes(len(data))
        if (asked := self.headers.get("Range")) and hub.knows_ranges:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        body = data[first:]
        self.send_header("Content-Length", str(len(body)))  # no ETag
        self.end_headers()
        if self.command == "HEAD":
            return None
        if hub.stall[name]:
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(hub.stall[name].pop(0))
            return None
        if hub.cut[name]:
            body = body[: hub.cut[name].pop(0)]
        for start in range(0, len(body), 65536):
            self.wfile.write(body[start : start + 65536])
            hub.sent[name] += len(body[start : start + 65536])
            time.sleep(hub.throttle)
        return None

    def answer(self, code: int, body: bytes = b"", error: str = "", location: str = "") -> None:
        self.send_response(code)
        for header, value in {"X-Error-Code": error, "Location": location, "Retry-After": "0"}.items():
            if value:
                self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
