#!/bin/sh
# one_owner.sh: one_owner.c with TLS, at the pace of an emulated machine. BUILD is where things are
# built; of ONE_OWNER_CONNECTIONS there is one in 32, as slow as the machine is.
set -e
export ONE_OWNER_AT_ONCE=32 ONE_OWNER_PER_SECOND=100
export ONE_OWNER_DEADLINE_MS=50 ONE_OWNER_ACCIDENT_MS=600
connections=$((${ONE_OWNER_CONNECTIONS:-20000} / 32))
ONE_OWNER_CONNECTIONS=$connections "$BUILD/c-tests/one_owner" --tls
LD_LIBRARY_PATH=$BUILD/without-claim/lib ONE_OWNER_CONNECTIONS=200 "$BUILD/c-tests/one_owner" \
    --tls without-claim fleet-without-claim
echo "one_owner: 6 passed"
