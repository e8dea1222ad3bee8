#!/bin/sh
# run_all.sh NAME PROGRAM...: runs every test program, also after one that failed, with what RUNNER
# says before it, and prints how many tests there were.
name=$1
shift
log=$(mktemp) || exit 1
trap 'rm -f "$log" "$log.failed"' EXIT
for program; do
    # shellcheck disable=SC2086
    { $RUNNER "$program" || echo "${program##*/}" >> "$log.failed"; } | tee -a "$log"
done
awk -v name="$name" '
    /^[a-z_]+: [0-9]+ passed/ {
        for (i = 3; i <= NF; i++)
            if ($i ~ /^(passed|skipped|FAILED)/) count[substr($i, 1, 6)] += $(i - 1)
    }
    END {
        printf "%s: %d tests passed, %d skipped, %d failed\n",
            name, count["passed"], count["skippe"], count["FAILED"]
    }' "$log"
[ -e "$log.failed" ] || exit 0
echo "error: $name: failed:" $(cat "$log.failed") >&2
exit 1
