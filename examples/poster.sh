#!/usr/bin/env bash
# One prompt as pictures of several shapes, all from the same seed.
#
#     examples/poster.sh "a yellow duck on the ocean" 7
set -euo pipefail

prompt=${1:?a prompt}
seed=${2:?a seed}
shift 2

for size in 1:1 16:9 9:16; do
    soragen image --size "$size" --seed "$seed" --output "poster-${size/:/x}.png" --quiet "$@" -- "$prompt"
done
