#!/usr/bin/env bash
# A video that goes on several times over. What is in between is stored exactly, so that only the last file is encoded.
#
#     examples/longer.sh clip.mp4 5 --seconds 2
set -euo pipefail

file=${1:?a video}
times=${2:?how many times it goes on}
shift 2

for ((number = 1; number < times; number++)); do
    file=$(soragen extend "$file" --lossless --quiet "$@")
done
soragen extend "$file" --quiet "$@"
