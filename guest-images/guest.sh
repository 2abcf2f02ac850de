# shellcheck shell=sh
# The agent, the guest library and commands (guest/), static where a program runs in tiny, as they
# are installed: root/. And the test programs of tests/guest: test/.
if [ -f "$TREE/guest/CMakeLists.txt" ]; then
  export CCACHE_BASEDIR="$TREE" CCACHE_NOHASHDIR=1
  cmake -S "$TREE/guest" -B "$TMPDIR/guest" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_INSTALL_PREFIX=/usr -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_C_COMPILER_LAUNCHER=ccache
  ninja -C "$TMPDIR/guest" -j "$(nproc)"
  DESTDIR=$PWD/root cmake --install "$TMPDIR/guest" --strip
fi
mkdir -p root test
for source in "$TREE"/tests/guest/*.c; do
  [ -f "$source" ] || continue
  name=$(basename "$source" .c)
  gcc -O2 -Wall -Wextra -Werror -static -pthread -o "test/$name" "$source"
  strip "test/$name"
done
for source in "$TREE"/tests/guest/*.cc; do
  [ -f "$source" ] || continue
  name=$(basename "$source" .cc)
  g++ -std=c++20 -O1 -Wall -Wextra -Werror -static -pthread -I"$TREE" -o "test/$name" "$source" \
    root/usr/lib/libsnow.a
  strip "test/$name"
done
