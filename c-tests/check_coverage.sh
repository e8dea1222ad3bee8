#!/bin/sh
# Every call that the headers declare must be made by a C test. Prints those that are not.
cd "$(dirname "$0")/.." || exit 1
# Without the comments, in which calls have parentheses too.
calls=$(sed -e 's|/\*.*\*/||' -e '/\/\*/,/\*\//d' include/handoff/*.h |
    grep -o '\<handoff_[a-z_]*(' | sort -u)
[ -n "$calls" ] || { echo "error: no calls found in include/handoff" >&2; exit 1; }
missing=0
for call in $calls; do
    if ! grep -q "\<$call" c-tests/test_*.c c-tests/tls/test_*.c; then
        echo "error: no C test calls ${call%(}" >&2
        missing=1
    fi
done
[ $missing = 0 ] && echo "check-coverage: C tests make all of the $(echo "$calls" | wc -l) calls"
exit $missing
