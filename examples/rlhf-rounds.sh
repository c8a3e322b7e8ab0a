#!/usr/bin/env bash
# Figure 11: a chat model through the rounds of the paper's RLHF, V1 to V5.
#
#   examples/rlhf-rounds.sh -m CHAT -p PROMPTS -e HELD_OUT -r HELPFUL_RM [-s SAFE_RM] [-k 16] [-n 4] [-o DIR]
#
# V1 to V4: -k answers to each prompt by the newest model, the best of them and of all earlier rounds' kept, and learned
# from. Then PPO on top of V4; then the model that came of it is sampled and learned from once more: V5. At the end -n
# answers of every version to the HELD_OUT prompts are judged by the same reward models: mean scores with 95 % intervals,
# by bootstrap over prompts. Each artifact's run.json names what it was made from, by digest. More flags for the stages
# are taken from SAMPLING (reject-sample, ppo, generate), CHOOSING (reject-sample), TUNING (sft) and LEARNING (ppo). Stopped
# half-way, the same command goes on; run again, it makes nothing twice. To draw it, and Figure 20:
# llamactl plot progress DIR/held-out-*.jsonl -o progress.png; llamactl plot distribution DIR/held-out-*.jsonl -o shift.png
#
#   TUNING="--batch-size 16 --lr 3e-4" LEARNING="--iterations 10 --batch-size 64 --mini-batch-size 16 --lr 3e-5" \
#       SAMPLING="--max-new-tokens 40" examples/rlhf-rounds.sh -m demo/chat -p demo/questions-asked.jsonl \
#       -e demo/questions-held-out.jsonl -r demo/helpful-rm -s demo/safe-rm -k 8 -o demo/rounds
set -euo pipefail

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}
chat="" prompts="" held="" helpful="" safe="" k=16 n=4 out=rounds
while getopts m:p:e:r:s:k:n:o:h option; do
    case $option in
        m) chat=$OPTARG ;; p) prompts=$OPTARG ;; e) held=$OPTARG ;; r) helpful=$OPTARG ;; s) safe=$OPTARG ;;
        k) k=$OPTARG ;; n) n=$OPTARG ;; o) out=$OPTARG ;; *) usage ;;
    esac
done
[ -n "$chat" ] && [ -n "$prompts" ] && [ -n "$held" ] && [ -n "$helpful" ] || usage
read -ra sampling <<<"${SAMPLING:-}"
read -ra choosing <<<"${CHOOSING:-}"
read -ra tuning <<<"${TUNING:-}"
read -ra learning <<<"${LEARNING:-}"
models=(--helpfulness "$helpful" ${safe:+--safety "$safe"})
mkdir -p "$out"

say() { printf '\n== %s\n' "$*" >&2; }

pool=()
round() { # number, the model that is sampled, the model that comes of it
    llamactl reject-sample "$2" "$prompts" -k "$k" --seed "$1" "${models[@]}" "${pool[@]}" "${sampling[@]}" \
        "${choosing[@]}" --report "$out/round-$1.json" -o "$out/round-$1.jsonl" >&2
    llamactl sft "$2" "$out/round-$1.jsonl" "${tuning[@]}" -o "$3" >&2
    pool+=(--pool "$out/round-$1.jsonl")
}

newest=$chat
versions=("$chat")
for number in 1 2 3 4; do
    say "V$number: rejection sampling from $newest"
    round "$number" "$newest" "$out/v$number"
    newest=$out/v$number
    versions+=("$newest")
done
say "V5: PPO on top of V4"
llamactl ppo "$newest" "$prompts" "${models[@]}" "${sampling[@]}" "${learning[@]}" -o "$out/v5-ppo" >&2
say "V5: sampled again"
round 5 "$out/v5-ppo" "$out/v5"
versions+=("$out/v5-ppo" "$out/v5")

scored=()
for version in "${versions[@]}"; do
    name=$(basename "$version")
    [ "$version" != "$chat" ] || name=chat # its own name may be that of a version: v5 of rounds before these
    llamactl generate "$version" "$held" -k "$n" --temperature 1 "${sampling[@]}" -o "$out/answers-$name.jsonl" >&2
    llamactl score "$out/answers-$name.jsonl" --reward "helpfulness=$helpful" ${safe:+--reward "safety=$safe"} \
        -o "$out/held-out-$name.jsonl" >&2
    scored+=("$version" "$out/held-out-$name.jsonl")
done

python3 - "${scored[@]}" <<'TABLE'
import json, random, sys

table, names = {}, {}
for version, path in zip(*[iter(sys.argv[1:])] * 2):
    of_prompts = {}
    with open(path, encoding="utf-8") as file:
        for sample in map(json.loads, file):
            of_prompts.setdefault(json.dumps(sample["messages"]), []).append(sample["scores"])
    names |= dict.fromkeys(next(iter(of_prompts.values()))[0])
    groups = list(of_prompts.values())
    table[version] = {}
    for name in names:
        means = [sum(one[name] for one in group) / len(group) for group in groups]
        dice = random.Random(0)  # the same prompts are drawn for all versions
        drawn = sorted(sum(dice.choices(means, k=len(means))) / len(means) for _ in range(1000))
        table[version][name] = f"{sum(means) / len(means):+.3f} [{drawn[25]:+.3f}, {drawn[974]:+.3f}]"
wide = max(map(len, table))
print(f"mean scores of answers to {len(groups):,} held-out prompts")
print(f"{'':{wide}}", *(f"{name:26}" for name in names), sep="  ")
for version, row in table.items():
    print(f"{version:{wide}}", *(f"{row[name]:26}" for name in names), sep="  ")
TABLE
