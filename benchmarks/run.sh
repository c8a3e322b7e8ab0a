#!/usr/bin/env bash
# Measure llamactl against its peers, with the defaults of both benchmarks; what is given here is given to both of them:
#
#     benchmarks/run.sh [--json results.jsonl] [--rounds 5]
#
# llamactl is that of the `python` on the path. Each peer lives in an environment of its own, made here from its
# requirements file, kept, and made again when that file has changed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
torch=$(grep '^torch==' "$here/../constraints.txt")

environment() {
    local wanted=$here/requirements-$1.txt env=$here/.envs/$1
    if cmp -s "$wanted" "$env/made-from.txt"; then return; fi
    echo "making the environment of $1" >&2
    rm -rf "$env"
    python -m venv "$env"
    # torch comes first and alone, and is named again beside the rest: or another version of it may be pulled in
    if grep -q '^torch$' "$wanted"; then
        "$env/bin/pip" install --quiet --disable-pip-version-check "$torch"
        "$env/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted" "$torch"
    else
        "$env/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted"
    fi
    cp "$wanted" "$env/made-from.txt"
}

for peer in tokenizing transformers litgpt; do environment "$peer"; done
if [ $# -gt 0 ] && [ "$1" = --environments-only ]; then exit; fi
python "$here/tokenizing.py" "$@"
python "$here/pretraining.py" "$@"
