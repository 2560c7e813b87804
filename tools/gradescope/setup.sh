#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the image: Python, the versions of constraints.txt, and a user for
# students' code. torch brings CUDA along on Linux; if that is too large, have pip take torch for CPUs alone, as torch's
# own page of installation says.
#
# $AUTOGRADER: where all of this lies, /autograder on Gradescope
set -euo pipefail
root=${AUTOGRADER:-/autograder}

apt-get install -y --no-install-recommends python3 python3-venv
python3 -m venv "$root/venv"
"$root/venv/bin/pip" install --no-cache-dir -c "$root/source/constraints.txt" -e "$root/source" pytest
id student > /dev/null 2>&1 || useradd --shell /usr/sbin/nologin student
chmod -R go+rX "$root/source" "$root/venv"
