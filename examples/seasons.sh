#!/usr/bin/env bash
# One video in several moods: the same forms and movements, each as its own prompt says.
#
#     examples/seasons.sh clip.mp4 "a red ball on snow at night" "a red ball on sand at noon"
set -euo pipefail

clip=${1:?a video}
shift

for prompt in "$@"; do
    soragen restyle "$clip" "$prompt" --seed 1 --quiet
done
