#!/usr/bin/env bash
# Measure llamactl against its peers, with the defaults of each benchmark; what is given here is given to all of them:
#
#     benchmarks/run.sh [--json results.jsonl] [--rounds 5]
#     benchmarks/run.sh --environments-only
#
# llamactl is that of the `python` on the path. Each peer lives in an environment of its own, made here from its
# requirements file, kept, and made again when that file has changed. Two peers are no packages: their sources are
# cloned from GitHub at a fixed commit, and nothing else reaches the network for them. llama.cpp is compiled by pip, for
# this machine's processor: that needs a C++ compiler and CMake, and takes ten minutes on two cores. LLAMA2C_SOURCE and
# NANOCHAT_SOURCE name another place to clone from; a folder that is there already (.envs/sources/NAME) is taken as it is.
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

source_of() { # name, place to clone from, commit
    local folder=$here/.envs/sources/$1
    if [ -d "$folder" ] && [ "$(cat "$folder.commit" 2>/dev/null || echo "$3")" = "$3" ]; then return; fi
    echo "fetching the source of $1 from $2" >&2
    rm -rf "$folder" "$folder.partial"
    git clone --quiet --no-checkout "$2" "$folder.partial"
    git -C "$folder.partial" checkout --quiet "$3"
    mv "$folder.partial" "$folder"
    echo "$3" >"$folder.commit"
}

for peer in tokenizing transformers litgpt trl trl-ppo llamacpp lmeval; do environment "$peer"; done
source_of llama2.c "${LLAMA2C_SOURCE:-https://github.com/karpathy/llama2.c}" 350e04fe35433e6d2941dce5a1f53308f87058eb
source_of nanochat "${NANOCHAT_SOURCE:-https://github.com/karpathy/nanochat}" 92d63d4e8bb4df75c3b71618f31ddde2378b2bcd
if [ $# -gt 0 ] && [ "$1" = --environments-only ]; then exit; fi
python "$here/tokenizing.py" "$@"
python "$here/pretraining.py" "$@"
python "$here/tuning.py" "$@"
python "$here/tuning.py" --attention "$@"
python "$here/comparing.py" "$@"
python "$here/sampling.py" "$@"
python "$here/ppo.py" "$@"
python "$here/likelihoods.py" "$@"
