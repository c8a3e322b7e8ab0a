#!/usr/bin/env bash
# Figures 15 and 33: helpfulness, safety and false refusals against the share of safety data in fine-tuning.
#
#   examples/safety-scaling.sh -m BASE -d HELPFUL -s SAFETY -r HELPFUL_RM -R SAFE_RM -p HELPFUL_PROMPTS \
#       -q SAFETY_PROMPTS [-x BORDERLINE_PROMPTS] [-n 1] [-o DIR] [-- FLAGS]
#
# BASE is fine-tuned on all HELPFUL dialogues with 0, 1, 10, 25, 50 and 100 % of the SAFETY ones, each part within the
# next. Each model gives -n answers to held-out prompts. A table has their mean scores, safety on SAFETY_PROMPTS and
# helpfulness on HELPFUL_PROMPTS, and how many begin as a refusal, of HELPFUL_PROMPTS and of BORDERLINE_PROMPTS (as
# XSTest's, of which those labelled unsafe are left out), with 95 % intervals by bootstrap over prompts. FLAGS go to sft,
# those in SAMPLING to generate, those in SCORING to score. Stopped half-way, the same command goes on; run again, it
# makes nothing twice.
#
#   llamactl convert xstest_prompts.csv --to prompts -o xstest.jsonl
#   SAMPLING="--max-new-tokens 64" examples/safety-scaling.sh -m base -d helpful.jsonl -s distilled.jsonl \
#       -r helpful-rm -R safe-rm -p held-out-helpful.jsonl -q held-out-adversarial.jsonl -x xstest.jsonl -- --lr 1e-4
#
# As a Slurm array each task makes one of the six models; the same command without an array prints the table:
#
#   sbatch --array 0-5 --gpus 1 examples/safety-scaling.sh -m base ...
set -euo pipefail

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}
base="" helpful="" safety="" helpful_rm="" safe_rm="" asked="" risky="" borderline="" n=1 out=safety-scaling
while getopts m:d:s:r:R:p:q:x:n:o:h option; do
    case $option in
        m) base=$OPTARG ;; d) helpful=$OPTARG ;; s) safety=$OPTARG ;; r) helpful_rm=$OPTARG ;; R) safe_rm=$OPTARG ;;
        p) asked=$OPTARG ;; q) risky=$OPTARG ;; x) borderline=$OPTARG ;; n) n=$OPTARG ;; o) out=$OPTARG ;; *) usage ;;
    esac
done
for given in "$base" "$helpful" "$safety" "$helpful_rm" "$safe_rm" "$asked" "$risky"; do [ -n "$given" ] || usage; done
shift $((OPTIND - 1))
for file in "$helpful" "$safety" "$asked" "$risky" $borderline; do
    [ -r "$file" ] || { echo "$file: no such file" >&2; exit 1; }
done
read -ra sampling <<<"${SAMPLING:-}"
read -ra scoring <<<"${SCORING:-}"
shares=(0 1 10 25 50 100)
mkdir -p "$out"

# Records in the order of their digests: each share holds the smaller ones. Tasks of an array may all do this at once.
python3 - "$safety" "$out" "${shares[@]}" <<'PARTS'
import hashlib, os, sys

data, out, *shares = sys.argv[1:]
with open(data, "rb") as file:
    lines = [line.rstrip(b"\n") + b"\n" for line in file if line.strip()]
lines.sort(key=lambda line: hashlib.sha256(line).digest())
for share in map(int, shares):
    part = lines[: -(-len(lines) * share // 100)]
    path = f"{out}/safety-{share}.jsonl"
    if part:
        with open(f"{path}.{os.getpid()}", "wb") as file:
            file.writelines(part)
        os.replace(f"{path}.{os.getpid()}", path)
PARTS

say() { printf '\n== %s\n' "$*" >&2; }

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then mine=("${shares[SLURM_ARRAY_TASK_ID]}"); else mine=("${shares[@]}"); fi
for share in "${mine[@]}"; do
    model=$out/chat-$share
    say "$share % of the safety data"
    part=()
    [ ! -e "$out/safety-$share.jsonl" ] || part=("$out/safety-$share.jsonl")
    llamactl sft "$base" "$helpful" "${part[@]}" "$@" -o "$model" >&2
    for kind in helpful adversarial ${borderline:+borderline}; do
        case $kind in helpful) prompts=$asked ;; adversarial) prompts=$risky ;; borderline) prompts=$borderline ;; esac
        llamactl generate "$model" "$prompts" -k "$n" "${sampling[@]}" -o "$model.$kind.jsonl" >&2
    done
    llamactl score "$model.adversarial.jsonl" --reward "safety=$safe_rm" "${scoring[@]}" \
        -o "$model.adversarial.scored.jsonl" >&2
    llamactl score "$model.helpful.jsonl" --reward "helpfulness=$helpful_rm" "${scoring[@]}" \
        -o "$model.helpful.scored.jsonl" >&2
    for kind in ${borderline:+borderline} helpful; do # the last of all: it is there, so all are
        llamactl eval refusals "$model.$kind.jsonl" -o "$model.$kind.refusals.jsonl" >&2
    done
done

python3 - "$out" "${shares[@]}" <<'TABLE'
import json, os, random, sys

out, *shares = sys.argv[1:]


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def mean(path, name):
    """A mean score with its interval: the same prompts are drawn for all models."""
    of_prompts = {}
    for sample in lines(path):
        of_prompts.setdefault(json.dumps(sample["messages"]), []).append(sample["scores"][name])
    means = [sum(group) / len(group) for group in of_prompts.values()]
    dice = random.Random(0)
    drawn = sorted(sum(dice.choices(means, k=len(means))) / len(means) for _ in range(1000))
    return f"{sum(means) / len(means):+.3f} [{drawn[25]:+.3f}, {drawn[974]:+.3f}]"


def refusals(path):
    """The share of refusals: of safe prompts, where some are labelled."""
    if not os.path.exists(path):
        return "-"
    found = {json.dumps(one.get("group")): one for one in lines(path)}
    one = found.get('{"label": "safe"}', found["null"])
    between = " [{:.1%}, {:.1%}]".format(*one["interval"]) if "interval" in one else ""
    return f"{one['value']:.1%}{between}"


done = [share for share in shares if os.path.exists(f"{out}/chat-{share}.helpful.refusals.jsonl")]
if len(done) < len(shares):
    print(f"of {', '.join(shares)} % there is so far: {', '.join(done)}; all make the table", file=sys.stderr)
    sys.exit()
rows = [("safety data", "dialogues", "safety score", "helpfulness score", "refused: helpful", "refused: borderline")]
for share in shares:
    part, model = f"{out}/safety-{share}.jsonl", f"{out}/chat-{share}"
    count = len(lines(part)) if os.path.exists(part) else 0
    rows.append((
        f"{share} %", f"{count:,}", mean(f"{model}.adversarial.scored.jsonl", "safety"),
        mean(f"{model}.helpful.scored.jsonl", "helpfulness"), refusals(f"{model}.helpful.refusals.jsonl"),
        refusals(f"{model}.borderline.refusals.jsonl"),
    ))
widths = [max(map(len, column)) for column in zip(*rows)]
for row in rows:
    print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip())
print("the paper's models refuse 0.006 to 0.05 % of helpful prompts, 15 to 27 % of borderline ones, as people judge")
TABLE
