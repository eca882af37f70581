#!/usr/bin/env bash
# A video made again from the file alone: with other seeds, each beside it. All else is as in the recipe inside it.
#
#     examples/again.sh a-red-ball-7.mp4 3 --steps 30
set -euo pipefail

file=${1:?a video that soragen made}
count=${2:?how many others}
shift 2

for ((number = 0; number < count; number++)); do
    soragen replay "$file" --seed random --quiet "$@"
done
