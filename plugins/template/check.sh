#!/bin/sh
# Usage: check.sh PYTHON. Builds t2iedit's wheel and installs it, with the template beside it, into a new environment
# that borrows only the libraries of PYTHON's; then the plugin must be found there and pass its own test.
set -eu
python=$1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$here/../.." "$here"
"$python" -m venv "$work/env"
libraries=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$work/env/bin/python" -m pip install --quiet --no-deps --no-index "$work"/dist/*.whl
# The libraries come last on the path, without their own editable t2iedit.
installed=$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir "$work/libraries"
for entry in "$libraries"/*; do
    case $(basename "$entry") in
        *t2iedit*) ;;
        *) ln -s "$entry" "$work/libraries/" ;;
    esac
done
echo "$work/libraries" > "$installed/libraries.pth"
cd "$work"
"$work/env/bin/t2iedit" plugins --strict > "$work/plugins.txt"
cat "$work/plugins.txt"
grep -q "hello .*t2iedit-hello" "$work/plugins.txt"
"$work/env/bin/t2iedit" doctor
"$work/env/bin/python" -c 'from t2iedit.tiny import tiny_pipeline; tiny_pipeline().save_pretrained("tiny")'
"$work/env/bin/t2iedit" generate "a red cat" -m tiny -e hello words=red --steps 2 -o hello.png
cp "$here/test_hello.py" "$work"
"$work/env/bin/python" -m pytest -q "$work/test_hello.py"
