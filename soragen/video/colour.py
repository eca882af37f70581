"""From the colours that a file stores to plain RGB as screens show it: filters for ffmpeg."""

from __future__ import annotations

import functools
import re

from soragen.video.facts import VideoFacts
from soragen.video.ffmpeg import has_filters

# What is transparent is shown on white, as on a page; the colour stored under it is nobody's intention.
_ON_WHITE = (
    "format=gbrap,split[a][b];[a]lutrgb=r=maxval:g=maxval:b=maxval:a=maxval[white];[white][b]overlay=format=gbrp"
)

# High dynamic range: light from 0 to 1000 cd/m² with white paper at 203 (ITU-R BT.2408, table 1) becomes 0..1. The
# "mobius" curve leaves what is darker than 0.3 as it is and bends the rest, so that skin and ground keep their tone.
_PAPER, _PEAK = 203, 1000
_TO_SDR = (
    "format=yuv444p12,zscale=pin=bt2020:tin={transfer}:min={matrix}:t=linear:npl=" + str(_PAPER) + ",format=gbrpf32le,"
    f"zscale=p=bt709,tonemap=mobius:param=0.3:desat=0:peak={_PEAK / _PAPER:.4f},"
    "zscale=t=bt709:m=gbr:r=pc:d=error_diffusion,format=gbrp"
)
_HDR = re.compile(r"\b(smpte2084|arib-std-b67)\b")


def on_white(facts: VideoFacts) -> list[str]:
    """The filter that puts white behind what is transparent; none where nothing is."""
    alpha = re.match(r"rgba|bgra|argb|abgr|ayuv|vuya|yuva|gbrap|ya\d|pal8", facts.pix_fmt)
    return [_ON_WHITE] if alpha else []


def to_sdr(facts: VideoFacts) -> list[str]:
    """The filters that bring high dynamic range (PQ or HLG) into the range of a screen; none for all other videos.

    None either where ffmpeg is built without zimg: then such a video is read as it is, and looks grey.
    """
    transfer = _HDR.search(facts.colour)
    if transfer is None or not facts.pix_fmt.startswith(("yuv", "p0", "nv")) or not _can_map():
        return []
    matrix = "bt2020c" if "bt2020c" in facts.colour else "bt2020nc"
    return [_TO_SDR.format(transfer=transfer[1], matrix=matrix)]


@functools.cache
def _can_map() -> bool:
    return has_filters("zscale", "tonemap")


def unsaid(facts: VideoFacts) -> str:
    """Of a video that does not say how its colours were made and where they lie, what players take.

    That is bt709 in high definition, and half-size colour on the left pixel of two; images (JPEG) have it between them.
    """
    if facts.container.endswith("_pipe") or not facts.pix_fmt.startswith(("yuv", "nv", "p0")):
        return ""
    matrix_said = re.search(r"bt709|bt470|bt2020|smpte|fcc|gbr|ycgco|ictcp", facts.colour)
    place_said = re.search(r"left|center|top|bottom", facts.colour)
    matrix = ":in_color_matrix=bt709" if not matrix_said and min(facts.width, facts.height) > 576 else ""
    return matrix + ("" if place_said else ":in_h_chr_pos=0:in_v_chr_pos=128")
