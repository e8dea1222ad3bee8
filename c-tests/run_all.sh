#!/bin/sh
# run_all.sh NAME PROGRAM...: runs every test program, also after one that failed, with what RUNNER
# says before it, and prints how many tests there were. AT_ONCE (1) of them run at a time.
name=$1
shift
logs=$(mktemp -d) || exit 1
trap 'rm -rf "$logs"' EXIT
export RUNNER logs
# shellcheck disable=SC2016
printf '%s\n' "$@" | xargs -n 1 -P "${AT_ONCE:-1}" sh -c '
    log=$logs/${1##*/}
    $RUNNER "$1" > "$log" 2>&1 || echo "${1##*/}" >> "$logs/failed"
    cat "$log"' sh
cat "$logs"/* | awk -v name="$name" '
    /^[a-z_]+: [0-9]+ passed/ {
        for (i = 3; i <= NF; i++)
            if ($i ~ /^(passed|skipped|FAILED)/) count[substr($i, 1, 6)] += $(i - 1)
    }
    END {
        printf "%s: %d tests passed, %d skipped, %d failed\n",
            name, count["passed"], count["skippe"], count["FAILED"]
    }'
[ -e "$logs/failed" ] || exit 0
echo "error: $name: failed:" $(cat "$logs/failed") >&2
exit 1
