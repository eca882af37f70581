"""Captions: a paraphrasing grammar over the attributes of a scene. Each phrase names exactly one attribute value.

What is said of the weather is in weather_words.py; nothing is where it is clear.
"""

from __future__ import annotations

import random

from .scene import Scene
from .weather_words import fitting, is_told, phrase, tell

# "subject" and "colour" hold words; "motion" verb phrases in the form "is ...ing"; "ground" and "time" adverbials;
# "camera" independent clauses. The first phrase of each is the plainest and is used most.
SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "subject": {
        "ball": ("ball", "ball", "beach ball", "round ball", "sphere"),
        "cube": ("cube", "cube", "box", "crate", "square block"),
        "cone": ("cone", "cone", "traffic cone", "pointed cone"),
        "tree": ("tree", "tree", "leafy tree", "round tree"),
        "house": ("house", "house", "cottage", "home", "cabin"),
        "car": ("car", "car", "automobile", "motor car", "sedan"),
        "boat": ("boat", "boat", "sailboat", "sailing boat", "ship"),
        "rocket": ("rocket", "rocket", "rocket ship", "space rocket", "spaceship"),
        "robot": ("robot", "robot", "toy robot", "android"),
        "snowman": ("snowman", "snowman", "snowman with a hat", "snow figure"),
        "mushroom": ("mushroom", "mushroom", "toadstool", "spotted mushroom"),
        "duck": ("duck", "duck", "rubber duck", "toy duck", "duckling"),
    },
    "colour": {
        "red": ("red", "red", "red", "crimson", "scarlet", "bright red"),
        "orange": ("orange", "orange", "orange", "tangerine", "bright orange"),
        "yellow": ("yellow", "yellow", "yellow", "lemon yellow", "bright yellow"),
        "green": ("green", "green", "green", "emerald", "bright green"),
        "blue": ("blue", "blue", "blue", "azure", "cobalt blue", "bright blue"),
        "purple": ("purple", "purple", "purple", "violet", "deep purple"),
        "pink": ("pink", "pink", "pink", "rose pink", "bubblegum pink"),
        "white": ("white", "white", "white", "plain white", "pure white"),
        "black": ("black", "black", "black", "jet black", "deep black"),
    },
    "motion": {
        "still": ("standing still", "sitting still", "not moving", "resting motionless", "staying in place"),
        "bouncing": (
            "bouncing", "bouncing up and down", "hopping up and down", "jumping", "hopping", "jumping up and down",
        ),
        "spinning": (
            "spinning", "spinning around", "rotating", "turning around in place", "twirling", "spinning in place",
        ),
        "moving left": (
            "moving left",
            "moving to the left",
            "going left",
            "gliding to the left",
            "sliding left",
            "travelling leftward",
            "moving from right to left",
        ),
        "moving right": (
            "moving right",
            "moving to the right",
            "going right",
            "gliding to the right",
            "sliding right",
            "travelling rightward",
            "moving from left to right",
        ),
        "growing": ("growing", "getting bigger", "growing larger", "becoming larger and larger", "swelling in size"),
        "shrinking": (
            "shrinking",
            "getting smaller",
            "becoming smaller and smaller",
            "shrinking in size",
            "growing smaller",
        ),
        "swaying": (
            "swaying", "swaying from side to side", "rocking from side to side", "tilting back and forth", "rocking",
        ),
        "rising": (
            "rising",
            "rising into the air",
            "floating upwards",
            "lifting off the ground",
            "flying up",
            "levitating",
            "taking off",
        ),
    },
    "ground": {
        "grass": (
            "on grass",
            "on green grass",
            "on the green grass",
            "on a green lawn",
            "on the grass",
            "in a meadow",
            "on a lawn",
            "in a grassy field",
            "on a grassy plain",
        ),
        "desert": (
            "in the desert",
            "on golden sand",
            "on yellow sand",
            "among orange dunes",
            "in a desert",
            "on sand",
            "among sand dunes",
            "on the sand",
            "in a sandy desert",
        ),
        "snow": (
            "on snow",
            "on white snow",
            "in the white snow",
            "on a white snowy field",
            "in the snow",
            "in a snowy field",
            "on snowy ground",
            "in a snowy landscape",
            "on a snow field",
        ),
        "checker": (
            "on a checkerboard floor",
            "on a black and white floor",
            "on black and white tiles",
            "on a black and white checkerboard",
            "on a chessboard",
            "on a checkered floor",
            "on a chessboard floor",
            "on checkered tiles",
            "on chessboard tiles",
        ),
        "ocean": (
            "on the ocean",
            "on the blue sea",
            "on blue water",
            "in the deep blue ocean",
            "in the ocean",
            "on the sea",
            "in the sea",
            "on the water",
            "on the waves",
        ),
    },
    "time": {
        "day": (
            "during the day",
            "under a blue sky",
            "under a clear blue sky",
            "in daylight",
            "in bright daylight",
            "on a sunny day",
            "at noon",
            "in the sunshine",
        ),
        "sunset": (
            "at sunset",
            "at dusk",
            "under an orange sky",
            "in the orange light of the evening",
            "under a red evening sky",
            "in the evening",
            "in the evening glow",
            "as the sun sets",
            "at golden hour",
            "under a sunset sky",
        ),
        "night": (
            "at night",
            "under a black sky",
            "in the dark blue night",
            "in the dark",
            "under the stars",
            "by moonlight",
            "at midnight",
            "under a starry sky",
        ),
        "overcast": (
            "under an overcast sky",
            "under a grey sky",
            "on a grey day",
            "under white clouds",
            "on a cloudy day",
            "under heavy clouds",
            "on an overcast day",
            "under a cloudy sky",
            "in dull weather",
        ),
    },
    "camera": {
        "static": (
            "the camera is static",
            "the camera does not move",
            "static shot",
            "fixed camera",
            "the camera stays still",
        ),
        "pan left": ("the camera pans left", "camera pan left", "camera panning left", "the camera turns to the left"),
        "pan right": (
            "the camera pans right", "camera pan right", "camera panning right", "the camera turns to the right",
        ),
        "zoom in": (
            "the camera zooms in",
            "zoom in",
            "the camera pushes in",
            "the camera moves closer",
            "camera zooming in",
            "dolly in",
        ),
        "zoom out": (
            "the camera zooms out",
            "zoom out",
            "the camera pulls back",
            "the camera moves away",
            "camera zooming out",
            "dolly out",
        ),
        "orbit": (
            "the camera orbits around it",
            "orbit shot",
            "the camera circles around",
            "orbiting camera",
            "the camera moves around it in an arc",
        ),
    },
}  # fmt: skip

# finite verbs for "The duck glides to the left."
_VERBS: dict[str, tuple[str, ...]] = {
    "still": ("stands still", "stays still", "does not move", "rests motionless"),
    "bouncing": ("bounces", "bounces up and down", "hops up and down", "jumps", "keeps bouncing"),
    "spinning": ("spins", "spins around", "rotates", "turns around in place", "twirls"),
    "moving left": ("moves left", "moves to the left", "goes left", "glides to the left", "slides left"),
    "moving right": ("moves right", "moves to the right", "goes right", "glides to the right", "slides right"),
    "growing": ("grows", "gets bigger", "grows larger", "becomes bigger and bigger"),
    "shrinking": ("shrinks", "gets smaller", "becomes smaller and smaller"),
    "swaying": ("sways", "sways from side to side", "rocks from side to side", "tilts back and forth"),
    "rising": ("rises", "rises into the air", "floats upwards", "lifts off the ground", "flies up", "takes off"),
}
_PLACES: dict[str, tuple[str, ...]] = {  # nouns for "The scene is a meadow."
    "grass": ("a meadow", "a grassy field", "a lawn"),
    "desert": ("a desert", "sand dunes", "a sandy desert"),
    "snow": ("a snowy field", "a snowy landscape", "a field of snow"),
    "checker": ("a checkerboard floor", "a checkered floor"),
    "ocean": ("the ocean", "the open sea", "ocean waves"),
}
_ADJECTIVES = ("little", "cute", "beautiful", "nice", "lovely", "pretty", "simple")
_STYLES = (
    "a video of",
    "a clip of",
    "a short video of",
    "a cinematic shot of",
    "a 3d render of",
    "an animation of",
    "footage of",
    "a movie of",
    "a short clip showing",
    "a 3d animation of",
)
_STYLE_TAILS = ("cinematic", "3d render", "high quality", "computer animation", "4k", "colourful", "smooth motion")
_OMIT = 0.07
_UNSAID = {"still": 0.55, "static": 0.7, "day": 0.5}
_MISSPELT = 0.05


def _pick(rng: random.Random, attribute: str, value: str, weather: str = "clear") -> str:
    """A phrase for the value that suits the weather: the plainest one in about a third of the cases."""
    phrases = SYNONYMS[attribute][value]
    if attribute == "time":
        phrases = fitting(phrases, weather)
    return phrases[0] if rng.random() < 0.3 else rng.choice(phrases)


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def misspell(text: str, rng: random.Random) -> str:
    """Swap, drop or double one letter in one word of four letters or more."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not long:
        return text
    at = rng.choice(long)
    word = words[at]
    i = rng.randrange(1, len(word) - 1)
    kind = rng.choice(("swap", "drop", "double"))
    if kind == "swap":
        word = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    elif kind == "drop":
        word = word[:i] + word[i + 1 :]
    else:
        word = word[: i + 1] + word[i:]
    words[at] = word
    return " ".join(words)


def _said(scene: Scene, rng: random.Random) -> dict[str, bool]:
    """Which attributes this caption names."""
    said = {}
    for name in ("colour", "motion", "ground", "time", "camera"):
        said[name] = rng.random() >= _UNSAID.get(getattr(scene, name), _OMIT)
    if scene.weather != "clear":
        said["weather"] = rng.random() >= _OMIT
    return said


def _noun(scene: Scene, rng: random.Random, colour: bool) -> str:
    """ "little red car" without an article."""
    words = [rng.choice(_ADJECTIVES)] if rng.random() < 0.12 else []
    if colour:
        words.append(_pick(rng, "colour", scene.colour))
    return " ".join([*words, _pick(rng, "subject", scene.subject)])


def _tags(scene: Scene, rng: random.Random, said: dict[str, bool]) -> str:
    """Comma-separated keywords."""
    noun = _noun(scene, rng, said["colour"])
    told = [name for name in ("motion", "ground", "time", "camera") if said[name]]
    parts = [_pick(rng, name, getattr(scene, name), scene.weather) for name in told]
    if is_told(scene, said):
        parts.append(phrase(scene, rng))
    rng.shuffle(parts)
    return ", ".join([noun, *parts])


def _sentence(scene: Scene, rng: random.Random, said: dict[str, bool]) -> tuple[str, str]:
    """The main sentence and a second one (or an empty string)."""
    noun = _article(_noun(scene, rng, said["colour"]))
    adverbs = []
    second = []
    if said["ground"]:
        if rng.random() < 0.1:
            second.append(f"the scene is {rng.choice(_PLACES[scene.ground])}")
        else:
            adverbs.append(_pick(rng, "ground", scene.ground))
    if said["time"]:
        adverbs.append(_pick(rng, "time", scene.time, scene.weather))
    if rng.random() < 0.15:
        adverbs.reverse()
    if is_told(scene, said):
        tell(scene, rng, adverbs, second)
    style = rng.choice(_STYLES) + " " if rng.random() < 0.15 else ""  # needs "spinning", not "spins"
    front = ""
    if not style and adverbs and rng.random() < 0.15:  # "at night, a red car ..."
        front = adverbs.pop() + ", "
    where = (" " + " ".join(adverbs)) if adverbs else ""
    if not said["motion"]:
        body = f"{noun}{where}"
        if not style and rng.random() < 0.15:
            body = f"there is {body}"
    elif style or rng.random() < 0.42:
        doing = _pick(rng, "motion", scene.motion)
        link = " " if style else rng.choice((" ", " ", " is "))
        body = f"{noun}{link}{doing}{where}" if rng.random() < 0.8 else f"{noun}{where}, {doing}"
    elif rng.random() < 0.75:
        body = f"{noun} {rng.choice(_VERBS[scene.motion])}{where}"
    else:  # the motion in a sentence of its own
        body = f"{noun}{where}"
        second.insert(0, f"it {rng.choice(_VERBS[scene.motion])}")
    return front + style + body, ". ".join(second)


def caption(scene: Scene, rng: random.Random) -> str:
    """A random English caption of the scene. The subject is always named; other attributes now and then are not."""
    return describe(scene, rng, _said(scene, rng))


def describe(scene: Scene, rng: random.Random, said: dict[str, bool]) -> str:
    """A random caption that names the subject and those attributes for which `said` is true."""
    if rng.random() < 0.10:
        text, second = _tags(scene, rng, said), ""
    else:
        text, second = _sentence(scene, rng, said)
        if said["camera"]:
            shot = _pick(rng, "camera", scene.camera)
            way = rng.random()
            if way < 0.55:
                text = f"{text}, {shot}"
            elif way < 0.70 and shot.startswith("the camera"):
                text = f"{text} while {shot}"
            elif way < 0.80:
                text = f"{shot}: {text}" if not shot.startswith("the camera") else f"{shot}. {text}"
            else:
                second = f"{second}. {shot}" if second else shot
    if rng.random() < 0.06:
        text = f"{text}, {rng.choice(_STYLE_TAILS)}"
    if second:
        text = f"{text}. {second}"
    if rng.random() < _MISSPELT:
        text = misspell(text, rng)
    if rng.random() < 0.5:
        text = ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
    if rng.random() < (0.75 if second else 0.4):
        text += "."
    return text
