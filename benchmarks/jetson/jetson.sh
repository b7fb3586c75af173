#!/bin/sh
# On a Jetson with JetPack 6 or 7: build a bundle's engine in a container, check it, time it, and write one JSON file.
#
#   sh jetson.sh BUNDLE [SECONDS]      writes BUNDLE/jetson.json; SECONDS of timing, by default 60
#   SEND=user@host:folder sh jetson.sh BUNDLE     copies the file there too, with scp
#
# Exit code: 0 passed, 1 the check failed (jetson.json tells why), 2 an error. Not run on a device yet.
set -eu

fail() {
    echo "jetson.sh: $1" >&2
    exit 2
}

[ $# -ge 1 ] || fail "BUNDLE is missing: give the folder that yolo-mkd bundle made"
[ -f "$1/bundle.json" ] || fail "$1 contains no bundle.json: give the folder that yolo-mkd bundle made"
bundle=$(cd "$1" && pwd)
seconds=${2:-60}
here=$(cd "$(dirname "$0")" && pwd)
release=${RELEASE_FILE:-/etc/nv_tegra_release}
[ -f "$release" ] || fail "$release is missing: this is not a Jetson with JetPack"
l4t=$(sed -n 's/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\).*/\1.\2/p' "$release")
case $l4t in
36.*) base=nvcr.io/nvidia/l4t-jetpack:r36.4.0 ;;
38.* | 39.*) base=nvcr.io/nvidia/tensorrt:25.09-py3 ;;
*) fail "L4T '$l4t' is not of JetPack 6 (36) or 7 (38, 39): install one of them" ;;
esac

docker build -t yolo-mkd-jetson --build-arg "BASE=$base" "$here" || fail "the image was not built: see docker's messages above"
mounts=
for file in /etc/nv_tegra_release /etc/nvpmodel.conf /var/lib/nvpmodel/status; do # name the device and its power mode
    [ ! -e "$file" ] || mounts="$mounts -v $file:$file:ro"
done
run() { # a script of the bundle, in the container
    # shellcheck disable=SC2086  # the paths above have no spaces
    docker run --rm --runtime nvidia $mounts -v "$bundle:/bundle" yolo-mkd-jetson python3 "$@"
}

part=$bundle/jetson.part
rm -rf "$part" && mkdir "$part"
run run.py --build --fp16 >&2 || fail "the engine was not built: see the message above"
code=0
run run.py --check --json --backend tensorrt --fp16 >"$part/check.json" || code=$?
[ "$code" -le 1 ] || fail "the engine was not checked: see the message above"
run time.py --seconds "$seconds" --backend tensorrt --fp16 --out jetson.part/time.json >&2 || fail "the engine was not timed: see the message above"
{
    printf '{"schema": "yolo-mkd/jetson/1", "l4t": "%s", "image": "%s", "bundle": ' "$l4t" "$base"
    cat "$bundle/bundle.json"
    printf ', "check": '
    cat "$part/check.json"
    printf ', "time": '
    cat "$part/time.json"
    printf '}\n'
} >"$part/jetson.json"
mv "$part/jetson.json" "$bundle/jetson.json"
rm -rf "$part"
echo "report    $bundle/jetson.json"
[ -z "${SEND:-}" ] || scp "$bundle/jetson.json" "$SEND" || fail "jetson.json was not copied to $SEND: see scp's message"
exit "$code"
