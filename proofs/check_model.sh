#!/bin/sh
# check_model.sh DIRECTORY: has spin visit every state of claim.pml, with one backend and with two,
# building in the directory, and checks that it finds fault with the protocols that are known to be
# wrong. MODEL_CONNECTIONS (2) go through two backends, twice as many through one.
set -eu
model=$(realpath "$(dirname "$0")/claim.pml")
one="-DBACKENDS=1 -DCONNECTIONS=$((2 * ${MODEL_CONNECTIONS:-2}))"
two="-DBACKENDS=2 -DCONNECTIONS=${MODEL_CONNECTIONS:-2}"
mkdir -p "$1"
cd "$1"

# visit SPIN-FLAGS GCC-FLAGS PAN-FLAGS
visit() {
    spin $1 -a "$model" >/dev/null
    gcc -O2 -w $2 -o pan pan.c
    ./pan -m1000000 $3 >pan.out 2>/dev/null
    grep -E '^pan:1: |errors: |states, stored' pan.out
}

for backends in "one backend" "two backends"; do
    flags=$one
    [ "$backends" = "one backend" ] || flags=$two
    echo "$backends: safety, and no side stuck:"
    visit "$flags" '-DNOCLAIM -DCOLLAPSE' ""
    grep -q 'errors: 0$' pan.out
    echo "$backends: every offer is settled, under weak fairness:"
    visit "$flags" "" "-a -f"
    grep -q 'errors: 0$' pan.out
    echo "$backends: without the claim, which must fail:"
    visit "$flags -DWITHOUT_CLAIM" '-DNOCLAIM -DBFS' -E
    grep -qF 'violated (owner[undecided]==0)' pan.out
    echo "$backends: without tokens, which must fail:"
    visit "$flags -DWITHOUT_TOKENS" '-DNOCLAIM -DBFS' -E
    grep -qF 'violated ((held[0]==0)' pan.out
done
echo "two backends: offered to the next one without taking it back, which must fail:"
visit "$two -DWITHOUT_TAKING_BACK" '-DNOCLAIM -DBFS' -E
grep -qF 'violated (owner[c]==0)' pan.out
