"""Models larger than the memory there is: the plan finds what fits, says so, and the result is the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_network
from safetensors.torch import load_file, save_file

from soragen.catalog import find
from soragen.errors import ResourceError
from soragen.families.pocket.transformer import PocketTransformer, TransformerConfig
from soragen.models.device import Memory
from soragen.models.offload import Residence, measure
from soragen.models.tiling import TiledVae
from soragen.pipeline import memory as memory_file
from soragen.pipeline import plan as plan_file
from soragen.pipeline import run
from soragen.pipeline.plan import Plan, make_plan
from soragen.request import Request

Ask = Callable[..., Request]
Free = Callable[..., None]
CARD = torch.device("cuda", 0)
MB = 10**6
WEIGHED = ("text_encoder", "transformer", "vae", "image_encoder", "refiner")


@pytest.fixture(scope="module")
def large(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose transformer has 33 million weights: 65 MB in four files, 131 MB as it is computed with."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("models") / "large")
    shutil.rmtree(folder / "transformer")
    config = TransformerConfig(10, width=512, num_layers=8, num_heads=4, mlp_width=1408, text_width=32)
    name = {"_class_name": "PocketTransformer"}
    write_network(PocketTransformer(config), folder / "transformer", {**name, **asdict(config)})
    whole = folder / "transformer" / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    shards = {key: f"model-{index * 4 // len(tensors)}.safetensors" for index, key in enumerate(sorted(tensors))}
    for shard in set(shards.values()):
        save_file({key: tensors[key] for key in tensors if shards[key] == shard}, folder / "transformer" / shard)
    (folder / "transformer" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return folder


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """free(memory, card) says how many bytes there are."""

    def set_free(memory: int, card: int = 0) -> None:
        def budget(device: torch.device | None = None) -> Memory:
            return Memory(10**12, card if device is not None and device.type == "cuda" else memory)

        monkeypatch.setattr(memory_file, "memory_budget", budget)

    return set_free


def planned(request: Request) -> Plan:
    return make_plan(request, find(request.checkpoint), "cpu")


def test_what_fits_stays_as_it_is(ask: Ask, large: Path, free: Free) -> None:
    plan = planned(ask(model=str(large)))
    peaks = plan.peak_bytes
    assert plan.residence == {} and plan.tile is None and plan.notes() == []
    free(max(peaks["text"], peaks["denoise"], peaks["decode"] + peaks["encode"]))
    assert planned(ask(model=str(large))) == plan


def test_a_transformer_too_large_is_streamed_from_its_file(ask: Ask, large: Path, free: Free) -> None:
    whole = planned(ask(model=str(large)))
    free(whole.peak_bytes["denoise"] - 1)
    plan = planned(ask(model=str(large)))
    assert plan.residence == {"transformer": Residence.MAPPED}
    _, block, rest = measure(large / "transformer")
    assert plan.weight_bytes == {**whole.weight_bytes, "transformer": 4 * (block + rest)}
    assert plan.peak_bytes["denoise"] < whole.peak_bytes["denoise"] - 90 * MB
    (note,) = plan.notes()
    assert note.startswith("too little memory for the whole transformer: its blocks come one at a time from their file")
    assert any(note in line for line in plan.lines())
    assert plan.to_dict()["residence"] == {"text_encoder": "resident", "transformer": "mapped"}


def test_a_text_encoder_too_large_is_streamed(
    ask: Ask, tiny: Path, free: Free, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_file, "weigh", lambda *_: {**dict.fromkeys(WEIGHED, 1), "text_encoder": 10**12})
    plan = planned(ask())
    assert plan.residence == {"text_encoder": Residence.MAPPED} and plan.weight_bytes["text_encoder"] < MB
    assert "the whole text encoder" in plan.notes()[0]


@pytest.mark.parametrize(("memory", "residence"), [(10**10, Residence.PINNED), (10**8, Residence.MAPPED)])
def test_a_card_is_fed_from_memory_where_that_is_large_enough(
    ask: Ask, large: Path, free: Free, memory: int, residence: Residence
) -> None:
    plan = planned(ask(model=str(large)))
    plan = replace(plan, machine=replace(plan.machine, device=CARD))
    free(memory, plan.peak_bytes["denoise"] - 1)
    fitted = memory_file.fit_memory(plan)
    assert fitted.residence == {"transformer": residence}
    _, block, rest = measure(large / "transformer")
    assert fitted.weight_bytes["transformer"] == 4 * (2 * block + rest)  # one works, the next one comes


def test_frames_too_large_are_cut(ask: Ask, tiny: Path, free: Free) -> None:
    request = ask(size="1024x64")
    whole = planned(request)
    whole = replace(whole, work=replace(whole.work, vae_bytes=10**9))  # so many activations have larger networks
    assert whole.grid.latent_shape[1:] == (4, 64)
    available = whole.peak_bytes["decode"] + whole.peak_bytes["encode"] - 10**9 // 4
    free(available)
    plan = memory_file.fit_memory(whole)
    assert plan.tile == (4, 36) and plan.residence == {}
    assert plan.peak_bytes["decode"] + plan.peak_bytes["encode"] <= available
    assert plan.notes()[-1].startswith("too little memory to decode whole frames: in tiles of 288x32")
    vae = run.load_vae(plan)
    assert isinstance(vae, TiledVae)
    frames = torch.cat(list(vae.decode(torch.randn(plan.latent_shape))))
    assert frames.shape == (9, 32, 512, 3)


def test_what_cannot_be_made_to_fit_is_refused(ask: Ask, large: Path, free: Free, calls: Any) -> None:
    whole = planned(ask(model=str(large)))
    whole = replace(whole, work=replace(whole.work, transformer_bytes=10**9))
    least = memory_file.stream(whole, "transformer").peak_bytes["denoise"]
    free(least)
    assert memory_file.fit_memory(whole).peak_bytes["denoise"] == least
    free(least - 1)
    with pytest.raises(ResourceError, match=r"denoise needs about 1\.4 GB"):
        memory_file.fit_memory(whole)
    assert calls.loaded == []


def test_a_streamed_run_makes_the_same_file(
    ask: Ask, large: Path, free: Free, make: Callable[..., run.Result], events: list[Any]
) -> None:
    request = ask(model=str(large))
    whole = make(request, "whole.mp4").path
    free(planned(request).peak_bytes["denoise"] - 1)
    events.clear()
    streamed = make(request, "streamed.mp4").path
    assert any("its blocks come one at a time" in str(event) for event in events)
    assert streamed.read_bytes() == whole.read_bytes()


def test_a_list_leaves_room_for_its_largest_video(
    ask: Ask, large: Path, free: Free, cli: Any, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later video needs blocks that come one at a time: the transformer that is loaded once has to be that one."""
    free(planned(ask(model=str(large))).peak_bytes["denoise"])
    plans, load = list[Plan](), run.load_transformer

    def loading(plan: Plan) -> Any:
        plans.append(plan)
        return load(plan)

    monkeypatch.setattr(run, "load_transformer", loading)
    Path("list.jsonl").write_text("".join(json.dumps({"prompt": "a ball", "frames": n}) + "\n" for n in (9, 33, 9)))
    asked = ("--model", str(large), "--size", "128x128", "--steps", "1", "--guidance", "1", "--seed", "1")
    assert planned(ask(model=str(large), frames=9)).residence == {}
    ended = cli("batch", "list.jsonl", *asked)
    assert ended.code == 0, ended.err
    assert [plan.residence for plan in plans] == [{"transformer": Residence.MAPPED}]
    assert calls.loaded.count("transformer") == 1


def test_each_video_of_a_list_has_its_own_tiles(
    tiny: Path, cli: Any, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = list[tuple[int, int]]()

    class Tiled(TiledVae):
        def __init__(self, vae: Any, tile: tuple[int, int], stride: tuple[int, int]) -> None:
            super().__init__(vae, tile, stride)
            cut.append(tile)

    def plan_of(request: Request, *rest: Any) -> Plan:
        plan = make_plan(request, *rest)
        return replace(plan, tile={5: None, 9: (16, 12), 13: (12, 12)}[request.size.num_frames])

    monkeypatch.setattr("soragen.pipeline.worklist.make_plan", plan_of)
    monkeypatch.setattr(run, "TiledVae", Tiled)
    Path("list.jsonl").write_text("".join(json.dumps({"prompt": "a ball", "frames": n}) + "\n" for n in (9, 5, 13)))
    ended = cli("batch", "list.jsonl", "--model", str(tiny), "--size", "128x128", "--steps", "1", "--seed", "1")
    assert ended.code == 0, ended.err
    assert cut == [(16, 12), (12, 12)] and calls.loaded.count("vae") == 1


CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from soragen.catalog import find
from soragen.models.device import Memory
from soragen.models.family import Context
from soragen.pipeline import memory, plan as plan_file, run
from soragen.request import Request

request, available, room, target = json.loads(sys.argv[1])
torch.set_num_threads(1)
request = Request.from_dict(request)
memory.memory_budget = lambda device=None: Memory(10**12, available)
plan = plan_file.make_plan(request, find(request.checkpoint), "cpu")
torch.manual_seed(0)
context = Context(torch.randn(7, 32), torch.ones(7, dtype=torch.bool))
x = torch.randn(plan.latent_shape)
x = x @ torch.randn(x.shape[-1], x.shape[-1])  # whatever torch sets up for its first product is there
if room:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + room, held + room))
denoise = run.load_transformer(plan).bind(context, plan.window_grid)
with torch.inference_mode():
    for level in plan.schedule[:2]:
        x = denoise(x, level)
save_file({"latents": x.contiguous()}, target)
print(json.dumps({part: residence.value for part, residence in plan.residence.items()}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_under_a_real_limit_the_streamed_plan_alone_survives(ask: Ask, large: Path, tmp_path: Path) -> None:
    """Room for all files of 65 MB to be open, and for a block; not for 131 MB of weights."""
    request = ask(model=str(large))
    short = planned(request).peak_bytes["denoise"] - 1

    def ran(available: int, room: int, name: str) -> subprocess.CompletedProcess[str]:
        arguments = json.dumps([request.to_dict(), available, room, str(tmp_path / name)])
        return subprocess.run([sys.executable, "-c", CHILD, arguments], capture_output=True, text=True)

    whole = ran(10**12, 0, "whole")
    assert whole.returncode == 0 and json.loads(whole.stdout) == {}, whole.stderr
    room = 110 * MB
    streamed = ran(short, room, "streamed")
    assert streamed.returncode == 0 and json.loads(streamed.stdout) == {"transformer": "mapped"}, streamed.stderr
    assert torch.equal(load_file(tmp_path / "streamed")["latents"], load_file(tmp_path / "whole")["latents"])
    failed = ran(10**12, room, "failed")
    assert failed.returncode != 0 and not (tmp_path / "failed").exists()
    assert "memory" in failed.stderr
