#!/bin/sh
# check_model.sh DIRECTORY: has spin visit every state of claim.pml, building in the directory, and
# checks that it finds fault with the protocols that are known to be wrong.
set -eu
model=$(realpath "$(dirname "$0")/claim.pml")
mkdir -p "$1"
cd "$1"

# visit SPIN-FLAGS GCC-FLAGS PAN-FLAGS
visit() {
    spin $1 -a "$model" >/dev/null
    gcc -O2 -w $2 -o pan pan.c
    ./pan $3 >pan.out 2>/dev/null
    grep -E '^pan:1: |errors: |states, stored' pan.out
}

echo "safety, and no side stuck:"
visit "" -DNOCLAIM ""
grep -q 'errors: 0$' pan.out
echo "every offer is settled, under weak fairness:"
visit "" "" "-a -f"
grep -q 'errors: 0$' pan.out
echo "without the claim, which must fail:"
visit -DWITHOUT_CLAIM '-DNOCLAIM -DBFS' -E
grep -qF 'violated ((brokers&backends)==0)' pan.out
echo "without tokens, which must fail:"
visit -DWITHOUT_TOKENS '-DNOCLAIM -DBFS' -E
grep -qF 'violated ((held==0)' pan.out
