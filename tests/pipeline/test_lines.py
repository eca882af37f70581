"""Lists of requests: what a line says, and the line of its own that a bad one gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from soragen.errors import InputError
from soragen.pipeline.lines import read_lines


def lines(path: Path, text: str | bytes) -> list[tuple[int, dict[str, Any] | str]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(line.number, str(line.error) if line.error else line.values) for line in read_lines(path)]


def test_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    found = lines(tmp_path / "a.txt", '\ufeffa ball\r\n\r\n  -x, "y"\n')
    assert found == [(1, {"prompt": "a ball"}), (3, {"prompt": '-x, "y"'})]


def test_json_values_are_what_the_options_take(tmp_path: Path) -> None:
    found = lines(
        tmp_path / "a.JSONL",
        '{"prompt": "a", "seconds": 2.5, "fps": "30000/1001", "seed": 9007199254740993, "steps": 3.0, "shift": 2}\n'
        '{"prompt": "a", "command": "image", "seed": null, "guidance": "1.5"}\n',
    )
    said = {"prompt": "a", "seconds": "2.5", "fps": "30000/1001", "seed": 2**53 + 1, "steps": 3, "shift": 2.0}
    assert found == [(1, said), (2, {"prompt": "a", "command": "image", "guidance": 1.5})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('"a ball"', "not a JSON object"),
        ('{"seed": 1}', "no prompt"),
        ('{"prompt": "a", "lenght": 5}', "unknown key 'lenght'"),
        ('{"prompt": 7}', "prompt 7 is not text"),
        ('{"prompt": "a", "seed": 1.5}', "seed 1.5 is not a whole number"),
        ('{"prompt": "a", "frames": true}', "frames True is not a whole number"),
        ('{"prompt": "a", "steps": Infinity}', "steps inf is not a whole number"),
        ('{"prompt": "a", "shift": "x"}', "shift 'x' is not a number"),
        ('{"prompt": "a", "seconds": [1]}', "seconds [1] is not a number"),
        ('{"prompt": "a", "command": "paint"}', "no command 'paint'"),
        ('{"prompt": "a", "command": "extend"}', "no video"),
        ('{"prompt": "a", "command": "image", "seconds": 1}', "image takes no seconds"),
    ],
)
def test_a_bad_line_does_not_end_the_list(tmp_path: Path, line: str, words: str) -> None:
    found = lines(tmp_path / "a.jsonl", f'{line}\n\n{{"prompt": "a"}}\n')
    assert found[0][0] == 1 and words in str(found[0][1])
    assert found[1:] == [(3, {"prompt": "a"})]


def test_csv_has_names_and_empty_cells(tmp_path: Path) -> None:
    found = lines(tmp_path / "a.csv", 'seed, prompt,size\r\n7,"a ball,\nred",\r\n,,\r\n,b,64x64,9\r\nx,c,\r\n')
    assert found[0] == (3, {"seed": 7, "prompt": "a ball,\nred"})
    assert found[1:] == [(5, "more than 3 cells"), (6, "seed 'x' is not a whole number")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.toml", "prompt = 1", "not a list of requests"),
        ("a.jsonl", "\n\n", "holds no requests"),
        ("a.csv", "words\na ball\n", "names no column prompt"),
        ("a.csv", "prompt,lenght\na ball,3\n", "has a column 'lenght'"),
        ("a.csv", 'prompt\n"a ball\n', "is no CSV"),
    ],
)
def test_what_is_no_list(tmp_path: Path, name: str, content: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        lines(tmp_path / name, content)
    with pytest.raises(InputError, match="cannot read"):
        read_lines(tmp_path / "none.txt")
