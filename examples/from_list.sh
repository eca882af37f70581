#!/usr/bin/env bash
# One video per line of a text file, into a folder. Run it again after a stop: videos that are there are not made again.
#
#     examples/from_list.sh examples/prompts.txt videos --size 256x256 --seconds 2
set -euo pipefail

list=${1:?a text file with one prompt per line}
folder=${2:?the folder for the videos}
shift 2

mkdir -p "$folder"
number=0
failed=0
while IFS= read -r prompt || [ -n "$prompt" ]; do
    [ -n "$prompt" ] || continue
    number=$((number + 1))
    file=$(printf '%s/%03d.mp4' "$folder" "$number")
    if [ -e "$file" ]; then
        continue
    fi
    # The prompt goes in by standard input, so that it may begin with "-". The seed is fixed: same list, same videos.
    code=0
    printf '%s' "$prompt" | soragen generate - --output "$file" --seed "$number" --quiet "$@" || code=$?
    if [ "$code" -eq 130 ]; then
        exit 130 # interrupted: so is the list
    elif [ "$code" -ne 0 ]; then
        failed=$((failed + 1))
        echo "line $number failed with exit code $code: $prompt" >&2
    fi
done <"$list"
[ "$failed" -eq 0 ]
