"""What captions say of the weather: adverbials beside those of ground and time, and sentences of their own.

Snow that falls is never said with the words of snow that lies ("in the snow", "on snow").
"""

from __future__ import annotations

import random

from .scene import Scene

# The first phrase is the plainest; {day} becomes the scene's time of day.
PHRASES: dict[str, tuple[str, ...]] = {
    "fog": (
        "in the fog", "in fog", "in thick fog", "in the mist", "in the haze", "in dense grey fog", "in misty weather",
        "in foggy weather", "on a foggy {day}", "on a misty {day}", "surrounded by fog", "shrouded in mist",
    ),
    "snowfall": (
        "in falling snow", "while it snows", "while it is snowing", "during a snowfall", "as snow falls",
        "as snowflakes fall", "in a snowstorm", "in gentle snowfall", "under falling snowflakes", "with snow falling",
        "in a flurry of snowflakes",
    ),
}  # fmt: skip
SENTENCES: dict[str, tuple[str, ...]] = {
    "fog": ("it is foggy", "it is misty", "there is fog", "the air is foggy", "fog hides the background"),
    "snowfall": ("it is snowing", "it snows", "snow is falling", "snowflakes are falling", "snow falls from the sky"),
}
_DAYS = {"day": "day", "overcast": "day", "sunset": "evening", "night": "night"}
_FAIR = ("sunny", "sunshine", "blue sky", "bright", "star", "moon")
"""Words of the times of day that no one would say of such weather."""


def is_told(scene: Scene, said: dict[str, bool]) -> bool:
    """Whether a caption that names what is `said` names the weather: there must be some."""
    return scene.weather != "clear" and said.get("weather", False)


def phrase(scene: Scene, rng: random.Random) -> str:
    """ "in the rain": an adverbial, the plainest one in about a third of the cases."""
    phrases = PHRASES[scene.weather]
    chosen = phrases[0] if rng.random() < 0.3 else rng.choice(phrases)
    return chosen.format(day=_DAYS[scene.time])


def fitting(phrases: tuple[str, ...], weather: str) -> tuple[str, ...]:
    """Those of the phrases for a time of day that can be said of the weather."""
    if weather == "clear":
        return phrases
    return tuple(each for each in phrases if not any(word in each for word in _FAIR))


def tell(scene: Scene, rng: random.Random, adverbs: list[str], second: list[str]) -> None:
    """Adds the weather to the adverbials of a sentence, never before a lone place, or as a sentence that follows."""
    if rng.random() < 0.2:
        second.append(rng.choice(SENTENCES[scene.weather]))
    else:
        adverbs.insert(rng.randint(min(1, len(adverbs)), len(adverbs)), phrase(scene, rng))
