#!/usr/bin/env bash
# Many clips as one video, each leading to the next. What is in between is stored exactly, and encoded once at the end.
#
#     examples/join.sh "the camera flies on" one.mp4 two.mp4 three.mp4
set -euo pipefail

prompt=${1:?what happens between them}
file=${2:?a video}
last=${!#}
shift 2

for next in "${@:1:$#-1}"; do
    file=$(soragen connect "$file" "$next" "$prompt" --lossless --quiet)
done
soragen connect "$file" "$last" "$prompt" --quiet
