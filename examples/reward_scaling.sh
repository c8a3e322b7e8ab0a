#!/usr/bin/env bash
# Figure 6: the accuracy of reward models against their size and the data they have seen.
#
#   examples/reward_scaling.sh -d COMPARISONS [-m MIX] [-k helpfulness|safety] [-n HELD_OUT] [-o DIR] CHAT_MODEL... [-- FLAGS]
#
# Trains a reward model of each chat model on an eighth, a quarter, half and all of COMPARISONS, measures all of them on
# the same HELD_OUT comparisons (a tenth if not given), no prompt of which any has seen, and prints a table with 95 %
# intervals. MIX is mixed in as rm-train --mix does; FLAGS go to rm-train. Stopped half-way, the same command goes on; run
# again, it makes nothing twice. To draw it: llamactl plot scaling DIR/*.scores.jsonl -o scaling.png
#
#   examples/reward_scaling.sh -d demo/corpus/comparisons-helpfulness.jsonl -o demo/scaling demo/base demo/chat \
#       -- --batch-size 16 --lr 1e-3
set -euo pipefail

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}
data="" mix="" kind=helpfulness count="" out=reward-scaling
while getopts d:m:k:n:o:h option; do
    case $option in
        d) data=$OPTARG ;; m) mix=$OPTARG ;; k) kind=$OPTARG ;; n) count=$OPTARG ;; o) out=$OPTARG ;; *) usage ;;
    esac
done
shift $((OPTIND - 1))
models=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    models+=("${1%/}")
    shift
done
[ $# -gt 0 ] && shift
[ -n "$data" ] && [ ${#models[@]} -gt 0 ] || usage
[ -r "$data" ] || { echo "$data: no such file" >&2; exit 1; }

# Prompts in the order of their digests: the first are held out, and each part of the rest holds the smaller ones. The same
# data makes the same parts; of others rm-train says that its models were made otherwise.
mkdir -p "$out"
python3 - "$data" "$out" "$count" <<'PARTS'
import hashlib, json, os, sys

data, out, count = sys.argv[1:]
groups = {}
with open(data, encoding="utf-8") as file:
    for line in file:
        prompt = json.dumps([(one["role"], one["content"].strip()) for one in json.loads(line)["prompt"]])
        groups.setdefault(hashlib.sha256(prompt.encode()).digest(), []).append(line.rstrip("\n") + "\n")
lines = [group for _, group in sorted(groups.items())]
wanted = int(count or sum(map(len, lines)) // 10)
held = []
while lines and len(held) + len(lines[0]) <= wanted:
    held += lines.pop(0)
rest = [line for group in lines for line in group]
if not held or len(rest) < 8:
    sys.exit(f"{data}: too little to hold {wanted} out and train on an eighth of the rest")
parts = {f"part-{part}.jsonl": rest[: len(rest) // part] for part in (8, 4, 2, 1)} | {"held-out.jsonl": held}
for name, part in parts.items():
    with open(f"{out}/{name}.beside", "w", encoding="utf-8") as file:
        file.writelines(part)
    os.replace(f"{out}/{name}.beside", f"{out}/{name}")
PARTS

scores=()
for model in "${models[@]}"; do
    for part in 8 4 2 1; do
        reward="$out/${model//\//_}-$part"
        llamactl rm-train "$model" "$out/part-$part.jsonl" --kind "$kind" ${mix:+--mix "$mix"} \
            --eval "$out/held-out.jsonl" "$@" -o "$reward" >&2
        llamactl eval reward "$reward" --data "$out/held-out.jsonl" -o "$reward.scores.jsonl" >&2
        scores+=("$model" "$out/part-$part.jsonl" "$reward")
    done
done

python3 - "${scores[@]}" <<'TABLE'
import json, math, sys
from pathlib import Path


def parameters(directory):
    count = 0
    for path in Path(directory).glob("*.safetensors"):
        with path.open("rb") as file:
            tensors = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        count += sum(math.prod(one["shape"]) for name, one in tensors.items() if name != "__metadata__")
    return count


table, sizes = {}, {}
for model, part, reward in zip(*[iter(sys.argv[1:])] * 3):
    with open(part, encoding="utf-8") as file:
        sizes[part] = sum(1 for _ in file)
    with open(f"{reward}.scores.jsonl", encoding="utf-8") as file:
        found = [one for one in map(json.loads, file) if one["metric"] == "accuracy" and not one.get("group")]
    score = found[0]
    low, high = score["interval"]
    name = f"{model}, {parameters(reward) / 1e6:,.1f} M"
    table.setdefault(name, {})[part] = f"{score['value']:.1%} ({low:.1%} to {high:.1%})"
wide = max(map(len, ["model, parameters", *table]))
print("accuracy on", f"{score['n']:,}", "held-out comparisons, by the number trained on")
print(f"{'model, parameters':{wide}}", *(f"{size:<24,}" for size in sizes.values()), sep="  ")
for name, row in table.items():
    print(f"{name:{wide}}", *(f"{row[part]:24}" for part in sizes), sep="  ")
TABLE
