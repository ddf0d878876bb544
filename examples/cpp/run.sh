#!/bin/sh
# Build the example and compare it with `vitrail predict` on one photo:
#     examples/cpp/run.sh ARTIFACT PHOTO.jpg
# PYTHON names the interpreter that has Vitrail (python3), BUILD the folder to build in.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: $0 ARTIFACT PHOTO.jpg" >&2
    exit 2
fi
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
build=${BUILD:-$here/build}
openvino=$("$python" -c 'from importlib.util import find_spec; print(find_spec("openvino").submodule_search_locations[0])')

cmake -S "$here" -B "$build" -DOpenVINO_DIR="$openvino/cmake" >/dev/null
cmake --build "$build" >/dev/null
"$build/predict" "$1" "$2" >"$build/answer.tsv"
cat "$build/answer.tsv"
"$python" -m vitrail predict "$1" "$2" --json "$build/answer.json"
"$python" "$here/compare.py" "$build/answer.tsv" "$build/answer.json"
