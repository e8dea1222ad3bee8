#!/bin/sh
# Every call of the library must be made by a C test. Prints those that are not.
cd "$(dirname "$0")/.." || exit 1
calls=$(tools/exports) || exit 1
missing=0
for call in $calls; do
    if ! grep -q "\<$call(" c-tests/test_*.c; then
        echo "no C test calls $call" >&2
        missing=1
    fi
done
exit $missing
