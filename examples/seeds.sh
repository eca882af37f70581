#!/usr/bin/env bash
# The same prompt with several seeds, small and short, to choose one; then the chosen seed is made in full.
#
#     examples/seeds.sh "a yellow cone rolling over snow" 4            # four previews, then stops
#     soragen generate "a yellow cone rolling over snow" --seed 3      # the third in full
set -euo pipefail

prompt=${1:?a prompt}
count=${2:?how many seeds}
shift 2

for ((seed = 1; seed <= count; seed++)); do
    soragen generate --seed "$seed" --frames 9 --quiet --json "$@" -- "$prompt" |
        python3 -c 'import json, sys; v = json.load(sys.stdin); print("seed", v["seed"], "in", v["seconds"]["total"], "s:", v["path"])'
done
