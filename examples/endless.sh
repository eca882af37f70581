#!/usr/bin/env bash
# A clip as a GIF that repeats without a seam: the best of several bridges from its end back to its beginning.
#
#     examples/endless.sh clip.mp4 4 --seconds 1
set -euo pipefail

clip=${1:?a video}
tries=${2:?how many bridges to try}
shift 2

best=$(for ((seed = 1; seed <= tries; seed++)); do
    soragen loop "$clip" --seed "$seed" --output "bridge-$seed.gif" --quiet --json "$@" |
        python3 -c 'import json, sys; v = json.load(sys.stdin); print(v["seam"], v["seed"])'
done | sort -n | head -n 1)
echo "bridge-${best#* }.gif"
