"""weights.toml: what is shipped is right, and a mistake in the user's own is named with its file."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from soragen.catalog import catalog, checkpoint_folder, find, measure_files, user_catalog
from soragen.errors import InputError, WeightsError
from soragen.installed import File

WAN = """
["wan-1.3b"]
family = "wan"
transformer_class = "WanTransformer3DModel"
description = "Wan 2.1, the small one"
source = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
revision = "0fad780a"
licence = { id = "Apache-2.0", url = "https://example.org", commercial = "yes", territory = "all", output = "yours" }
native = { width = 832, height = 480, num_frames = 81, fps = 16, max_area = 1.0, max_num_frames = 81 }
dtypes = { text_encoder = "bfloat16", transformer = "bfloat16", vae = "float32" }
abilities = { text = true, first_frame = false, last_frame = false, any_frames = false }

["wan-1.3b".defaults]
width = 832
height = 480
num_steps = 50
guidance_scale = 5
shift = 3.0
schedule = "flow_truncated"
solver = "unipc"
negative_prompt = "色调艳丽，过曝"

["wan-1.3b".files]
"vae/diffusion_pytorch_model.safetensors" = { size = 507591892, sha256 = "00" }
"""


PUBLISHED = {
    "wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.2-ti2v-5b", "wan2.2-t2v-a14b", "ltx-video-0.9.1", "ltx-video-0.9.5",
}  # fmt: skip


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "weights.toml"
    monkeypatch.setenv("SORAGEN_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("SORAGEN_WEIGHTS", str(path))
    path.write_text("")
    return path


def test_embedded_files_are_those_of_the_table() -> None:
    pocket = find("pocket")
    assert pocket.files and pocket.files == measure_files(checkpoint_folder(pocket))
    assert pocket.num_bytes <= 64e6
    assert len(pocket.digest) == 64


def test_native_clip_lasts_from_first_frame_to_last() -> None:
    assert find("pocket").native.seconds == 2


def test_a_published_model_fits_the_table(own: Path) -> None:
    own.write_text(WAN, encoding="utf-8")
    wan = find("wan-1.3b")
    assert next(iter(catalog())) == "pocket" and list(catalog())[-1] == "wan-1.3b"
    assert (wan.native.fps, wan.native.seconds, wan.defaults.guidance_scale) == (Fraction(16), 5, 5.0)
    assert wan.files == (File("vae/diffusion_pytorch_model.safetensors", 507591892, "00"),)
    with pytest.raises(WeightsError, match="not on this machine") as caught:
        checkpoint_folder(wan)
    command = "soragen models pull wan-1.3b"
    assert caught.value.hint == f"{command} (0.5 GB); {command} --dry-run shows what it would take"


def test_the_user_may_change_one_value(own: Path) -> None:
    before = find("pocket")
    own.write_text("[pocket.defaults]\nnum_steps = 7\n")
    after = find("pocket")
    assert after.defaults.num_steps == 7
    assert after.defaults.shift == before.defaults.shift and after.native == before.native


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pocket]\nfamly = 'pocket'", "unknown key 'famly' for \\[pocket\\] in .*weights.toml"),
        ("[pocket.defaults]\nnum_step = 7", "unknown key 'num_step' for defaults of \\[pocket\\] in .*weights.toml"),
        ("[pocket.files.x]\nsha = '0'", "unknown key 'sha' for file x of files|unknown key 'sha' for file x"),
        ("[pocket]\nname = 'other'", "unknown key 'name'"),
        ("[new]\nfamily = 'pocket'", "new has no 'transformer_class'"),
        ("[pocket.native]\nwidth = '128'", "width of native of pocket is '128'"),
        ("[pocket.native]\nwidth = -1", "width of native of pocket is -1"),
        ("[pocket.native]\nwidth = true", "width of native of pocket is True"),
        ("[pocket.native]\nfps = 'fast'", "fps of native of pocket"),
        ("[pocket.defaults]\nsolver = 'magic'", "solver of defaults of pocket is 'magic'"),
        ("[pocket.dtypes]\nvae = 'float8'", "vae of dtypes of pocket is 'float8'"),
        ("[pocket]\nlike = 'pocket'", "is to be like 'pocket'"),
        ("[a]\nlike = 'b'\n[b]\nlike = 'a'", "is to be like"),
        ("[pocket]\nlicence = 'mine'", "licence of pocket is 'mine'"),
        ("[licences.mine]\ntext = 'x'", "unknown key 'text' for \\[licences.mine\\]"),
        ("[pocket.defaults.shifts]\nlarge = 3.0", "a shift is given for the size 'large'"),
        ("[pocket.defaults]\nschedule = 'listed'\nnum_steps = 2\ntimesteps = [1000]", "2 steps has 1 timesteps"),
        ("[pocket.defaults]\ntimesteps = [1000, 500]", r"the schedule 'flow' of \d+ steps has 2 timesteps"),
        ("[pocket.defaults]\ntimesteps = [1000, 'end']", "timesteps of defaults of pocket is"),
        ("pocket = 3", "is not a table"),
        ("[pocket", "cannot read .*weights.toml"),
    ],
)
def test_mistakes_are_named(own: Path, text: str, said: str) -> None:
    own.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        catalog()
    assert caught.value.hint


def test_a_named_file_must_exist(own: Path) -> None:
    own.unlink()
    with pytest.raises(InputError, match="cannot read"):
        catalog()


def test_without_one_the_package_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SORAGEN_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert not user_catalog().exists()
    assert set(catalog()) >= PUBLISHED | {"pocket"}


def a_folder(folder: Path, transformer_class: str = "PocketTransformer") -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_text(json.dumps({"_class_name": transformer_class}))
    return folder


def test_a_folder_is_known_by_its_transformer(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "mine")
    mine, pocket = find(str(folder)), find("pocket")
    assert (mine.name, mine.family, mine.files) == ("mine", "pocket", ())
    assert mine.defaults == pocket.defaults
    assert checkpoint_folder(mine) == folder


def test_a_folder_is_known_by_its_index(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"transformer": ["soragen", "PocketTransformer"]}))
    assert find(str(tmp_path)).family == "pocket"


def test_a_folder_may_have_values_of_its_own(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "mine")
    (folder / "soragen.json").write_text(json.dumps({"defaults": {"num_steps": 4}}))
    assert find(str(folder)).defaults.num_steps == 4
    (folder / "soragen.json").write_text(json.dumps({"defaults": {"steps": 4}}))
    with pytest.raises(InputError, match=r"unknown key 'steps'.*soragen\.json"):
        find(str(folder))


def test_what_is_no_checkpoint_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a checkpoint in the published layout"):
        find(str(tmp_path))
    with pytest.raises(InputError, match="holds a FluxTransformer2DModel"):
        find(str(a_folder(tmp_path / "flux", "FluxTransformer2DModel")))
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        find(str(tmp_path / "x.safetensors"))
    with pytest.raises(InputError, match="no model named 'Pockett'") as caught:
        find("Pockett")
    assert "did you mean pocket?" in str(caught.value.hint)


def test_every_part_of_every_checkpoint_has_terms_and_a_source() -> None:
    for checkpoint in catalog().values():
        for part, licence in checkpoint.licences.items():
            assert all((licence.id, licence.commercial, licence.territory, licence.output)), part
            assert licence.url.startswith("https://"), part
        if checkpoint.is_hub:
            assert re.fullmatch(r"[\w-]+/[\w.-]+", checkpoint.source)
            assert re.fullmatch(r"[0-9a-f]{40}|", checkpoint.revision), "a hub takes whole hashes only"
            assert "text_encoder" in {part.folder for part in checkpoint.parts}
            assert checkpoint.signature


def test_published_values() -> None:
    """Those that are easily lost on the way: from the authors' own sampling code."""
    known = catalog()
    a14b, ti2v, small = known["wan2.2-t2v-a14b"], known["wan2.2-ti2v-5b"], known["wan2.1-t2v-1.3b"]
    assert (a14b.defaults.shift_for(1280, 720), a14b.defaults.guidance_scale) == (12.0, 4.0)
    assert (a14b.defaults.low_noise_guidance_scale, a14b.defaults.num_steps) == (3.0, 40)
    assert (ti2v.native.width, ti2v.native.height, ti2v.native.num_frames, ti2v.native.fps) == (1280, 704, 121, 24)
    assert (small.native.seconds, small.defaults.shift, small.dtypes.vae) == (5, 8.0, "bfloat16")
    assert ti2v.defaults.negative_prompt == small.defaults.negative_prompt != ""
    assert known["ltx-video-0.9.1"].defaults.schedule != known["ltx-video-0.9.5"].defaults.schedule
    assert known["ltx-video-0.9.1"].licence.commercial.startswith("no")


def test_the_shift_is_that_of_the_nearest_size() -> None:
    defaults = catalog()["wan2.1-t2v-14b"].defaults
    sides = [(832, 480), (480, 832), (640, 360), (1280, 720), (1920, 1080)]
    assert [defaults.shift_for(*size) for size in sides] == [3.0, 3.0, 3.0, 5.0, 5.0]


def test_areas_that_are_rendered_as_they_are() -> None:
    native = catalog()["wan2.1-t2v-14b"].native
    sides = [(640, 360), (832, 480), (1280, 720), (1920, 1080)]
    assert [native.knows_area(width * height) for width, height in sides] == [False, True, True, False]


def test_a_table_may_be_like_another(own: Path) -> None:
    own.write_text('["mine"]\nlike = "wan2.2-ti2v-5b"\nsource = "/models/mine"\n[mine.defaults]\nnum_steps = 4\n')
    mine, base = find("mine"), find("wan2.2-ti2v-5b")
    assert (mine.native, mine.licences["mine"], mine.source) == (base.native, base.licence, "/models/mine")
    assert (mine.defaults.num_steps, mine.defaults.shift) == (4, base.defaults.shift)
    assert (mine.revision, mine.download_bytes) == ("", 0)  # those of the other repository


def test_names_are_those_of_the_engine() -> None:
    from soragen.checkpoint import SCHEDULES, SOLVERS
    from soragen.diffusion import schedule, solver

    assert set(SOLVERS) == set(solver.SOLVERS)
    assert all(callable(getattr(schedule, name)) for name in SCHEDULES)
