#!/usr/bin/env bash
# Every picture that is named begins to move. One that fails does not end the others.
#
#     examples/postcards.sh "waves roll in" holiday/*.jpg
set -euo pipefail

prompt=${1:?what happens}
shift
failed=0
for picture in "$@"; do
    soragen animate "$picture" "$prompt" --quiet || failed=$((failed + 1))
done
[ "$failed" -eq 0 ]
