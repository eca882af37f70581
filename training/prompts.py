"""Lists of prompts with the attributes that each of them asks for: one JSON object a line.

    python -m training.prompts training/heldout.jsonl

made the list of held-out captions: of scenes whose combination of subject, colour, ground and time training never sees.
It is frozen; making it anew would make scores incomparable. `training/freeform.jsonl` was written by hand.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.world.captions import describe
from training.world.scene import ATTRIBUTES, JITTER, Scene, is_held_out, sample_scene

HELD_OUT = Path(__file__).with_name("heldout.jsonl")
COUNT = 324
UNSAID = 0.06
CANDIDATES = 32


@dataclass(frozen=True)
class Prompt:
    """attributes: the value of each that the caption asks for, None where it leaves it open."""

    caption: str
    attributes: dict[str, str | None]

    def scene(self, rng: random.Random) -> Scene:
        """A scene as it was asked for, the rest drawn at random; held out where the caption leaves room for that."""
        for _ in range(1000):
            values = {name: self.attributes[name] or rng.choice(all_of) for name, all_of in ATTRIBUTES.items()}
            scene = Scene(**values, jitter=tuple(rng.random() for _ in JITTER))
            if is_held_out(scene):
                break
        return scene


def read_prompts(path: Path) -> list[Prompt]:
    """Raises ValueError for a line whose attributes are not those of the world."""
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        prompt = Prompt(**json.loads(line))
        known = {name: (*values, None) for name, values in ATTRIBUTES.items()}
        if list(prompt.attributes) != list(known) or any(
            value not in known[name] for name, value in prompt.attributes.items()
        ):
            raise ValueError(f"{path}:{number}: not the attributes of the world: {prompt.attributes}")
        prompts.append(prompt)
    return prompts


def draw_prompts(rng: random.Random, count: int) -> Iterator[Prompt]:
    """`count` captions, every value of every attribute about equally often; one mention in sixteen is left out."""
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(count):
        # The scene of many whose values have come up least, each counted against its even share.
        drawn = [sample_scene(rng, held_out=True) for _ in range(CANDIDATES)]
        scene = min(drawn, key=lambda scene: sum((len(ATTRIBUTES[v[0]]) * seen[v]) ** 2 for v in _values(scene)))
        values = _values(scene)
        seen.update(values)
        said = {name: name == "subject" or rng.random() >= UNSAID for name in ATTRIBUTES}
        yield Prompt(describe(scene, rng, said), {name: value if said[name] else None for name, value in values})


def _values(scene: Scene) -> list[tuple[str, str]]:
    return [(name, getattr(scene, name)) for name in ATTRIBUTES]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    options = parser.parse_args(arguments)
    with options.file.open("x", encoding="utf-8") as file:
        for prompt in draw_prompts(random.Random("held out"), options.count):
            file.write(json.dumps({"caption": prompt.caption, "attributes": prompt.attributes}) + "\n")


if __name__ == "__main__":
    main()
