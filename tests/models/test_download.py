"""Downloads from a hub on this machine that cuts, corrupts, stalls, redirects and refuses."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import BIG, COMMIT, NEEDED, SOURCE, WEIGHTS, Asked, Hub, a_checkpoint, in_shared_cache

from soragen.catalog import checkpoint_folder, find
from soragen.cli import app, entry
from soragen.errors import InputError, ResourceError, WeightsError
from soragen.installed import model_folder, read_record
from soragen.models import download, hub
from soragen.pipeline import pull as pulling
from soragen.pipeline.events import Event, Note, Progress
from soragen.pipeline.pull import plan_pull, pull


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of the test's own, no patience, no proxy. Returns the folder of the model."""
    (tmp_path / "weights.toml").write_text(WEIGHTS)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(hub, "WAITS", (0.0, 0.0, 0.0))
    return tmp_path / "models" / "tiny"


def environment(folder: Path) -> dict[str, str]:
    return {
        "SORAGEN_WEIGHTS": str(folder / "weights.toml"),
        "SORAGEN_MODELS": str(folder / "models"),
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": "hf_secret",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub(a_checkpoint()) as server:
        yield server


def fetch(server: Hub) -> list[Event]:
    events: list[Event] = []
    pull(plan_pull("tiny", server.url), events.append)
    return events


def assert_whole(server: Hub, folder: Path) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == NEEDED | {"soragen.lock.json"}
    for path in NEEDED:
        assert (folder / path).read_bytes() == server.files[path], path
    assert checkpoint_folder(find("tiny")) == folder


def test_pulls_what_is_needed_and_records_it(place: Path, server: Hub) -> None:
    with pytest.raises(WeightsError, match="tiny is not on this machine") as caught:
        checkpoint_folder(find("tiny"))
    assert str(caught.value.hint).startswith("soragen models pull tiny")
    events = fetch(server)
    assert_whole(server, place)
    assert {one.path.removeprefix(f"/{SOURCE}/resolve/{COMMIT}/") for one in server.fetched()} == NEEDED
    total = sum(len(server.files[path]) for path in NEEDED)
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert (last.done, last.total) == (total, total)
    record = read_record(place)
    assert record and record.complete and (record.source, record.revision) == (SOURCE, COMMIT)
    assert set(record.agreed) == {"Apache-2.0"}
    big = next(file for file in record.files if file.path == BIG)
    assert (big.size, big.sha256) == (len(server.files[BIG]), hashlib.sha256(server.files[BIG]).hexdigest())
    assert find("tiny").files == record.files and len(find("tiny").digest) == 64


def test_what_is_there_is_not_fetched_again(place: Path, server: Hub) -> None:
    fetch(server)
    server.asked.clear()
    fetch(server)
    assert not server.fetched()


def test_goes_on_after_a_cut_without_an_etag(place: Path, server: Hub) -> None:
    size = len(server.files[BIG])
    at = size * 99 // 100
    server.cut[BIG] = [at]
    fetch(server)
    assert_whole(server, place)
    assert [one.headers.get("range") for one in server.fetched(BIG)] == [None, f"bytes={at}-"]
    assert server.sent[BIG] == size


def test_cut_after_cut_is_no_failure_while_bytes_come(place: Path, server: Hub) -> None:
    server.cut[BIG] = [100_000] * 15
    fetch(server)
    assert_whole(server, place)


def test_when_nothing_comes_the_part_stays(place: Path, server: Hub) -> None:
    server.cut[BIG] = [500_000, *[0] * 9]
    with pytest.raises(WeightsError, match=r"stopped at 500,000 of .* bytes") as caught:
        fetch(server)
    assert "goes on" in str(caught.value.hint)
    assert (place / f"{BIG}.part").stat().st_size == 500_000 and not (place / BIG).exists()
    with pytest.raises(WeightsError, match="only partly"):
        checkpoint_folder(find("tiny"))
    server.cut.clear()
    server.asked.clear()
    assert plan_pull("tiny", server.url).here >= 500_000
    fetch(server)
    assert_whole(server, place)
    assert [one.headers.get("range") for one in server.fetched(BIG)] == ["bytes=500000-"]
    assert not server.fetched("model_index.json")


def test_a_server_without_ranges(place: Path, server: Hub) -> None:
    server.knows_ranges = False
    server.cut[BIG] = [700_000, 300_000]
    fetch(server)
    assert_whole(server, place)


@pytest.mark.parametrize("excess", [-1, 0, 10])
def test_a_part_of_something_else_is_thrown_away(place: Path, server: Hub, excess: int) -> None:
    part = place / f"{BIG}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * (len(server.files[BIG]) + excess))
    events = fetch(server)
    assert_whole(server, place)
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done == last.total


@pytest.mark.parametrize("path", [BIG, "transformer/config.json"])
def test_wrong_content_comes_once_more_and_then_is_an_error(place: Path, server: Hub, path: str) -> None:
    server.corrupt[path] = 1
    fetch(server)
    assert_whole(server, place)
    (place / path).unlink()
    server.corrupt[path] = 2
    with pytest.raises(WeightsError, match="wrong content twice"):
        fetch(server)
    assert not (place / path).exists() and not (place / f"{path}.part").exists()


def test_what_passes_is_waited_for(place: Path, server: Hub) -> None:
    server.listing = [503, 429]
    server.status[BIG] = [429, 500, 503]
    fetch(server)
    assert_whole(server, place)


def test_a_connection_that_stalls_is_made_anew(place: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 0.3)
    server.stall[BIG] = [1.0]
    fetch(server)
    assert_whole(server, place)
    assert server.fetched(BIG)[1].headers["range"] == "bytes=1000-"


def test_files_elsewhere_are_read_there_without_the_token(place: Path, server: Hub) -> None:
    with Hub(server.files) as elsewhere:
        server.elsewhere, server.token = elsewhere.url, "hf_secret"
        fetch(server)
        assert_whole(server, place)
        assert elsewhere.fetched(BIG) and not any("authorization" in one.headers for one in elsewhere.asked)
        assert all(one.headers["authorization"] == "Bearer hf_secret" for one in server.fetched())
        elsewhere.status[BIG] = [403]  # a link that has expired
        (place / BIG).unlink()
        fetch(server)
        assert_whole(server, place)


def test_encryption_is_not_given_up() -> None:
    request = urllib.request.Request("https://hub.example/x", headers={"Authorization": "Bearer x"})
    redirects = download._Redirects()
    with pytest.raises(WeightsError, match="without encryption"):
        redirects.redirect_request(request, None, 302, "Found", {}, "http://hub.example/x")
    same = redirects.redirect_request(request, None, 307, "Temporary", {}, "https://hub.example/y")
    other = redirects.redirect_request(request, None, 307, "Temporary", {}, "https://cdn.example/y")
    assert same.get_header("Authorization") and not other.get_header("Authorization")


def test_the_token_is_not_sent_in_the_clear(place: Path) -> None:
    assert "authorization" in hub.request_headers("https://hub.example")
    assert "authorization" not in hub.request_headers("http://hub.example")
    assert "authorization" not in hub.request_headers("http://127.0.0.1.example")


def test_a_gate_is_met_before_the_first_byte(place: Path, server: Hub) -> None:
    server.token = "hf_other"
    with pytest.raises(WeightsError, match="gated") as caught:
        fetch(server)
    assert f"{server.url}/{SOURCE}" in str(caught.value.hint) and "settings/tokens" in str(caught.value.hint)
    assert not server.fetched() and not place.exists()


@pytest.mark.parametrize(("key", "value", "said"), [
    ("source", "someone/else", "is not there, or not for you"),
    ("revision", "f" * 40, "has no revision"),
])  # fmt: skip
def test_what_is_not_there_is_named(place: Path, server: Hub, key: str, value: str, said: str) -> None:
    own = Path(os.environ["SORAGEN_WEIGHTS"])
    old = {"source": SOURCE, "revision": COMMIT}[key]
    own.write_text(WEIGHTS.replace(f'{key} = "{old}"', f'{key} = "{value}"'))
    with pytest.raises(WeightsError, match=said) as caught:
        fetch(server)
    assert caught.value.hint


@pytest.mark.parametrize(("code", "said", "hint"), [
    (403, f"{SOURCE} is gated", "sign in and agree"),
    (404, f"{SOURCE} is not there, or not for you", "check the name; if it is private, make a token at"),
])  # fmt: skip
def test_a_list_of_files_that_is_refused(place: Path, server: Hub, code: int, said: str, hint: str) -> None:
    """With no word of the hub's own beside the code, as mirrors answer."""
    server.listing = [code]
    with pytest.raises(WeightsError, match=said) as caught:
        fetch(server)
    assert hint in str(caught.value.hint) and "try again later" not in str(caught.value.hint)
    assert len(server.asked) == 1  # it does not pass: nobody waits for it


@pytest.mark.parametrize(("code", "said", "hint"), [
    (403, f"{SOURCE} is gated", "sign in and agree"),
    (404, f"answered 404 for .* of {SOURCE}", "pull again, or try another --endpoint"),
])  # fmt: skip
def test_a_file_that_is_refused(place: Path, server: Hub, code: int, said: str, hint: str) -> None:
    server.refusal = code
    with pytest.raises(WeightsError, match=said) as caught:
        plan_pull("tiny", server.url)  # before the first byte
    assert hint in str(caught.value.hint) and not server.fetched()
    server.refusal, server.status[BIG] = 0, [code]
    with pytest.raises(WeightsError, match=said) as caught:
        fetch(server)  # or after many
    assert hint in str(caught.value.hint) and len(server.fetched(BIG)) == 1
    fetch(server)
    assert_whole(server, place)


def test_a_hub_that_is_not_there(place: Path, server: Hub) -> None:
    with pytest.raises(WeightsError, match="cannot be reached") as caught:
        plan_pull("tiny", "http://127.0.0.1:9")
    assert "--endpoint" in str(caught.value.hint)
    with pytest.raises(InputError, match="not the address of a hub"):
        plan_pull("tiny", "file:///etc")


def test_a_disk_that_is_too_small(place: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10**6

    monkeypatch.setattr(pulling.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(ResourceError, match=r"tiny needs 0\.3 GB .* 0\.0 GB are free"):
        plan_pull("tiny", server.url)
    assert not server.fetched() and not place.exists()


@pytest.mark.parametrize("path", ["transformer/../../zz.json", "vae//zz.json", "vae/C:zz.json", "vae/..\\zz.json"])
def test_paths_that_lead_out_are_refused(place: Path, server: Hub, path: str) -> None:
    server.files[path] = b"{}"
    try:
        fetch(server)
    except InputError as error:
        assert "names the file" in error.message
    assert not [one for one in server.fetched() if "zz.json" in one.path]
    assert not list(place.parent.parent.rglob("*zz.json"))


def test_a_repository_with_pickles_alone_is_refused(place: Path, server: Hub) -> None:
    server.files = {path: data for path, data in server.files.items() if not path.endswith((".safetensors", ".bin"))}
    server.files["diffusion_pytorch_model.bin"] = b"a pickle"
    with pytest.raises(WeightsError, match="no weights in safetensors") as caught:
        plan_pull("tiny", server.url)
    assert "pickles" in str(caught.value.hint)


@pytest.mark.parametrize("pickle", ["text_encoder/pytorch_model.bin", "vae/model.pth"])
def test_one_component_as_a_pickle_is_refused_before_the_first_byte(place: Path, server: Hub, pickle: str) -> None:
    folder = pickle.partition("/")[0]
    server.files = {path: data for path, data in server.files.items() if not path.startswith(f"{folder}/")}
    server.files |= {pickle: b"a pickle", f"{folder}/config.json": b"{}", f"{folder}/x.bin.index.json": b"{}"}
    with pytest.raises(WeightsError, match=f"{SOURCE} holds the weights of {folder} only as {pickle}") as caught:
        fetch(server)
    assert "pickles (.bin, .pth) can run code" in str(caught.value.hint)
    assert not server.fetched() and not place.exists()


def test_another_model_in_its_place_is_named(place: Path, server: Hub) -> None:
    server.files = a_checkpoint(num_layers=3)
    with pytest.raises(WeightsError, match=r"is not tiny: transformer\.num_layers is 3 and not 2"):
        fetch(server)
    with pytest.raises(WeightsError, match="only partly"):
        checkpoint_folder(find("tiny"))


def test_two_at_once_are_told_apart(place: Path, server: Hub) -> None:
    from soragen.installed import locked

    plan = plan_pull("tiny", server.url)
    with locked("tiny"), pytest.raises(InputError, match="another soragen"):
        pull(plan, lambda _: None)


# What is on this machine already


def test_files_in_the_shared_cache_are_used(place: Path, server: Hub, tmp_path: Path) -> None:
    repository = in_shared_cache(tmp_path / "hf" / "hub", SOURCE, server.files)
    (repository / "snapshots" / COMMIT / BIG).resolve().write_bytes(b"damaged".ljust(len(server.files[BIG])))
    events = fetch(server)
    assert_whole(server, place)
    assert [one.path.endswith(BIG) for one in server.fetched()] == [True]
    assert any("is taken from" in event.text for event in events if isinstance(event, Note))
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (place / vae).samefile(repository / "snapshots" / COMMIT / vae)


def test_files_of_another_model_are_used(place: Path, server: Hub) -> None:
    fetch(server)
    own = Path(os.environ["SORAGEN_WEIGHTS"])
    own.write_text(WEIGHTS + WEIGHTS.replace("[tiny]", "[twin]"))
    server.asked.clear()
    pull(plan_pull("twin", server.url), lambda _: None)
    assert all(one.path.endswith(".json") for one in server.fetched())
    assert (model_folder("twin") / BIG).samefile(place / BIG)


# Whole processes


def command(folder: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    variables = {**os.environ, **environment(folder), **more}
    return subprocess.Popen(
        [sys.executable, "-m", "soragen", "models", *arguments],
        env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_killed_and_resumed_from_a_mirror(place: Path, server: Hub, tmp_path: Path) -> None:
    server.throttle = 0.1
    process = command(tmp_path, "pull", "tiny", "--yes", "--quiet", HF_ENDPOINT=server.url)
    part, deadline = place / f"{BIG}.part", time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size > 600_000):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.communicate()
    have = part.stat().st_size
    server.throttle = 0
    server.asked.clear()
    code, out, err = ended(command(tmp_path, "pull", "tiny", "--yes", HF_ENDPOINT=server.url))
    assert (code, out) == (0, f"{place}\n"), err
    assert [one.headers.get("range") for one in server.fetched(BIG)] == [f"bytes={have}-"]
    assert not server.fetched("model_index.json")
    assert_whole(server, place)
    assert "licence" in err and "Apache-2.0" in err and "commercial use: yes" in err and "UMT5" in err


def test_nothing_is_fetched_without_an_agreement(place: Path, server: Hub, tmp_path: Path) -> None:
    code, out, err = ended(command(tmp_path, "pull", "tiny", "--endpoint", server.url))
    assert (code, out) == (2, "") and "--yes" in err and "licence" in err
    assert not server.fetched() and not place.exists()
    code, out, err = ended(command(tmp_path, "pull", "tiny", "--endpoint", server.url, "--dry-run"))
    assert (code, out) == (0, "") and not server.fetched()


def test_a_terminal_is_asked_once(
    place: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def run(answer: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        error = Terminal()
        with monkeypatch.context() as context:
            context.setattr(sys, "stderr", error)
            context.setenv("TERM", "dumb")
            code = entry.run(app, ["models", "pull", "tiny", "--endpoint", server.url])
        return code, capsys.readouterr().out, error.getvalue()

    code, out, err = run("n\n")
    assert (code, out) == (2, "") and "[y/N]" in err and "commercial use" in err and not server.fetched()
    server.status[BIG] = [404]
    code, out, err = run("y\n")
    assert (code, out) == (3, "") and "404" in err  # agreed, and then it failed
    code, out, err = run("")
    assert (code, out) == (0, f"{place}\n") and "[y/N]" not in err
    record = read_record(place)
    assert record and re.fullmatch(r"\d{4}-\d\d-\d\d", record.agreed["Apache-2.0"])


def test_offline_takes_the_shared_cache_and_opens_no_socket(place: Path, server: Hub, tmp_path: Path) -> None:
    code, _, err = ended(command(tmp_path, "pull", "tiny", "--yes", HF_HUB_OFFLINE="1", HF_ENDPOINT=server.url))
    assert code == 3 and "HF_HUB_OFFLINE is set" in err and f"does not hold {SOURCE}\n" in err
    cached = in_shared_cache(tmp_path / "hf" / "hub", SOURCE, server.files) / "snapshots" / COMMIT / BIG
    kept = cached.rename(tmp_path / "kept")
    code, out, err = ended(command(tmp_path, "pull", "tiny", "--yes", HF_HUB_OFFLINE="1", HF_ENDPOINT=server.url))
    assert (code, out) == (3, "") and f"does not hold {BIG} of {SOURCE}\n" in err
    kept.rename(cached)
    before = read_record(place)
    code, out, err = ended(command(tmp_path, "pull", "tiny", "--dry-run", HF_HUB_OFFLINE="1", HF_ENDPOINT=server.url))
    assert (code, out) == (0, "") and "Apache-2.0" in err and read_record(place) == before
    code, out, err = ended(command(tmp_path, "pull", "tiny", "--yes", HF_HUB_OFFLINE="1", HF_ENDPOINT=server.url))
    assert (code, out) == (0, f"{place}\n"), err
    assert_whole(server, place)
    record = read_record(place)
    assert record and (record.source, record.revision) == (SOURCE, COMMIT) and set(record.agreed) == {"Apache-2.0"}
    assert server.asked == list[Asked]()
