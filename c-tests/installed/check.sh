#!/bin/sh
# check.sh DIRECTORY: installs below DIRECTORY, uses the copy from programs outside the tree, and
# uninstalls. MAKE, CC and CXX come from the Makefile.
stage=$1
prefix=/opt/handoff
libdir=$prefix/lib/any-linux
tree=$PWD
failed=0
fail() { echo "check-install: $*" >&2; failed=1; }
die() { fail "$@"; exit 1; }

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work" "$stage"' EXIT
rm -rf "$stage"

make_quietly() {
    "$MAKE" --no-print-directory "$@" DESTDIR="$stage" PREFIX=$prefix LIBDIR=$libdir \
        > "$work/log" 2>&1 || { cat "$work/log" >&2; die "make $*"; }
}

# Whoever installs, root perhaps, rebuilds nothing and writes nothing into the tree.
touch "$work/before"
make_quietly install CARGO=false
find include src build/lib build/bin build/man build/*.o build/*.stamp -newer "$work/before" > "$work/written"
[ -s "$work/written" ] && fail "make install wrote: $(cat "$work/written")"

# Where nothing could be found again, nothing is installed.
for path in PREFIX=rel BINDIR=bin LIBDIR=lib INCLUDEDIR=./include MANDIR= DOCDIR=doc 'PREFIX=/p x' \
    'LIBDIR=/a$$b'; do
    "$MAKE" -s install CARGO=false DESTDIR="$work/refused/" "$path" > "$work/log" 2>&1 &&
        fail "make install $path is not refused"
    [ "$(grep -c "^error: ${path%%=*}='" "$work/log")" = 1 ] || fail "$path: $(cat "$work/log")"
    [ -e "$work/refused" ] && fail "make install $path has installed something"
done

here=$stage$libdir
soname=libhandoff.so.0
real=$(readlink "$here/$soname")
[ "$(readlink "$here/libhandoff.so")" = $soname ] || fail "libhandoff.so is not a link to $soname"
[ "$(stat -c %a "$here/$real")" = 755 ] || fail "$real is not of mode 755"
[ -f "$stage$prefix/share/man/man7/handoff.7" ] || fail "no handoff(7)"
[ -f "$stage$prefix/share/man/man1/handoff.1" ] || fail "no handoff(1)"
docs=$stage$prefix/share/doc/handoff
tools/check_links.py "$docs" || fail "documents with dead links"
named=$(grep -oh '`examples/[^` ]*`' "$docs/README.md" "$docs"/docs/*.md | tr -d '`')
for file in $named LICENSE-MIT LICENSE-APACHE; do
    [ -e "$docs/$file" ] || fail "a document names $file, which is not installed"
done
calls=$(tools/exports) || die "no list of calls"
for call in $calls; do
    [ -f "$stage$prefix/share/man/man3/$call.3" ] || fail "no $call(3)"
done
grep -rF "$tree" "$here/pkgconfig" "$here/cmake" && fail "these lines hold build paths"
[ -z "$(find "$stage" -type f ! -perm -444)" ] || fail "not everything is readable by all"

# Another directory, so that nothing of the tree is found by chance.
cp c-tests/installed/use*.c* c-tests/installed/CMakeLists.txt "$work"
cd "$work" || exit 1
export PKG_CONFIG_LIBDIR="$here/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$stage"

# program NAME COMPILE...: compiles, and runs with the installed library in reach if NAME is shared.
program() {
    name=$1
    shift
    "$@" -o "$name" || { fail "$name does not link: $*"; return; }
    case $name in
    shared*) LD_LIBRARY_PATH=$here "./$name" ;;
    *) ! readelf -d "$name" | grep libhandoff && "./$name" ;;
    esac || fail "$name does not run"
}

flags='-Wall -Wextra -Wpedantic -Werror'
for row in "c $CC -std=c99 use.c" "cc $CXX -std=c++11 use.cc" "hpp $CXX -std=c++17 use_hpp.cc"; do
    language=${row%% *}
    compile=${row#* }
    # shellcheck disable=SC2046,SC2086
    {
        program "shared_$language" $compile $flags $(pkg-config --cflags --libs handoff)
        # The shared library has the same name and comes first where both are: out of the way.
        mv "$here/libhandoff.so" "$work/aside"
        program "static_$language" $compile $flags $(pkg-config --static --cflags --libs handoff)
        mv "$work/aside" "$here/libhandoff.so"
        program "fully_static_$language" $compile $flags -static \
            $(pkg-config --static --cflags --libs handoff)
    }
done
for example in "$docs"/examples/*.c; do
    case $example in
    */tls_*) more='-lssl -lcrypto' ;;
    *) more= ;;
    esac
    # shellcheck disable=SC2046,SC2086
    $CC -std=c11 $flags -pthread "$example" $(pkg-config --cflags --libs handoff) $more -o example ||
        fail "$example does not compile"
done
version=$(pkg-config --modversion handoff)
grep -qxF "version = \"$version\"" "$tree/Cargo.toml" ||
    fail "the version is $version for pkg-config but not in Cargo.toml"

{ cmake -S . -B cmake -DPACKAGE="$here/cmake/handoff" -DVERSION="${version%.*}" &&
    cmake --build cmake; } > log 2>&1 ||
    { cat log >&2; die "CMake does not build with the package"; }
for name in handoff_c handoff_cc handoff_hpp static_c static_cc static_hpp; do
    "cmake/$name" || fail "$name, built by CMake, does not run"
done

# The command, as installed, and that its backend answers.
command=$stage$prefix/bin/handoff
[ "$(LD_LIBRARY_PATH=$here "$command" --version)" = "handoff $version" ] ||
    fail "handoff --version is not $version"
LD_LIBRARY_PATH=$here "$command" exec "$work/backend.sock" -- cat > log 2>&1 &
backend=$!
for _ in $(seq 100); do [ -S "$work/backend.sock" ] || sleep 0.1; done
LD_LIBRARY_PATH=$here "$command" check "$work/backend.sock" > log ||
    fail "handoff check: $(cat log)"
kill $backend

cd "$tree" || exit 1
make_quietly uninstall
find "$stage" ! -type d > "$work/left"
[ -s "$work/left" ] && fail "make uninstall left: $(cat "$work/left")"
find "$stage$prefix" -mindepth 1 -type d \( -name handoff -o -name .debug \) > "$work/left"
[ -s "$work/left" ] && fail "make uninstall left its directories: $(cat "$work/left")"

[ $failed = 0 ] && echo "check-install: C and C++, pkg-config and CMake, shared and static"
exit $failed
