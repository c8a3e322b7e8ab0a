#!/usr/bin/env bash
# The chain on what every Python installation carries: text -> tokenizer -> shards -> base model -> chat model ->
# answers -> reward models -> scores -> a better chat model, twice.
#
#   examples/demo.sh [DIR]
#
# A few million parameters, 6 to 12 minutes on two cores. Stopped half-way, the same command goes on; run again, it makes
# nothing twice. Trained in fp32: a processor without instructions for bf16 takes a quarter longer in bf16.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
demo=${1:-demo}
began=$SECONDS

say() { printf '\n== %s\n' "$*" >&2; }

say "1/12 corpus: the standard library's documentation topics, docstrings and sources; questions about them, better and worse answers"
[ -s "$demo/corpus/valid.jsonl" ] || python3 "$here/stdlib_corpus.py" "$demo/corpus"
[ -s "$demo/corpus/dialogues-valid.jsonl" ] || python3 "$here/stdlib_dialogues.py" "$demo/corpus"
[ -s "$demo/corpus/comparisons-safety.jsonl" ] || python3 "$here/stdlib_comparisons.py" "$demo/corpus"
llamactl validate "$demo/corpus/dialogues.jsonl" --held-out "$demo/corpus/dialogues-valid.jsonl"

say "2/12 tokenizer: 4,096 pieces"
llamactl train-tokenizer "$demo"/corpus/{docs,code}.jsonl --vocab-size 4096 -o "$demo/tokenizer.model" >&2

say "3/12 shards: two sources"
for source in docs code; do
    llamactl tokenize "$demo/corpus/$source.jsonl" --tokenizer "$demo/tokenizer.model" -o "$demo/shards-$source" >&2
done

say "4/12 base model: docs and code, 3 to 1"
llamactl pretrain --size tiny --dim 256 --layers 4 --heads 8 --kv-heads 4 --ffn 688 \
    --data "$demo/shards-docs=0.75" --data "$demo/shards-code=0.25" \
    --context 256 --batch-size 16 --steps 240 --lr 3e-3 --precision fp32 -o "$demo/base" >&2

say "5/12 what it writes"
prompts="$demo/prompts.jsonl"
cat >"$prompts" <<'PROMPTS'
{"id": 1, "text": "Return True if"}
{"id": 2, "text": "os.path.getsize(filename)\n\n"}
{"id": 3, "text": "class json.JSONReader\n\n"}
PROMPTS
llamactl generate "$demo/base" "$prompts" --max-new-tokens 64 -o "$demo/samples.jsonl"
python3 - "$demo/samples.jsonl" <<'SHOW'
import json, sys, textwrap

for line in open(sys.argv[1], encoding="utf-8"):
    sample = json.loads(line)
    print(textwrap.indent(f"\033[2m{sample['text']}\033[0m{sample['response']}" if sys.stdout.isatty() else sample["text"] + sample["response"], "    "))
    print()
SHOW

say "6/12 perplexity on held-out documentation"
llamactl eval perplexity "$demo/base" "$demo/corpus/valid.jsonl" -o "$demo/scores.jsonl"

say "7/12 chat model: fine-tuned on questions about the library"
llamactl sft "$demo/base" "$demo/corpus/dialogues.jsonl" --eval "$demo/corpus/dialogues-valid.jsonl" \
    --batch-size 16 --epochs 1 --lr 1e-3 --precision fp32 -o "$demo/chat" >&2

say "8/12 a short conversation"
rm -f "$demo/conversation.jsonl"
llamactl chat "$demo/chat" --temperature 0 --max-new-tokens 64 >/dev/null <<TALK
What does \`os.path.getsize\` do?
And \`os.path.join\`?
What is the class \`json.JSONDecoder\` for?
/save $demo/conversation.jsonl
TALK
python3 - "$demo/conversation.jsonl" <<'SHOW'
import json, sys, textwrap

for message in json.loads(open(sys.argv[1], encoding="utf-8").read())["messages"]:
    print(textwrap.indent(message["content"], "    > " if message["role"] == "user" else "    "), end="\n\n" if message["role"] == "assistant" else "\n")
SHOW

say "9/12 reward models: which answer is better, which is safe"
compare() {
    llamactl rm-train "$demo/chat" "$demo/corpus/comparisons-$1.jsonl" --mix "$demo/corpus/comparisons-$2.jsonl" \
        --kind "$1" --hold-out 200 --batch-size 16 --lr 1e-3 --eval-every 60 --precision fp32 -o "$3" >&2
}
compare helpfulness safety "$demo/helpful-rm"
compare safety helpfulness "$demo/safe-rm"
llamactl eval reward "$demo/helpful-rm" --data "$demo/helpful-rm/held-out.jsonl" -o "$demo/reward-scores.jsonl"

say "10/12 a score in a pipe: four answers to each question, the best and the worst of them"
questions="$demo/questions.jsonl"
cat >"$questions" <<'QUESTIONS'
{"id": 1, "messages": [{"role": "user", "content": "What does `os.path.getsize` do?"}]}
{"id": 2, "messages": [{"role": "user", "content": "Explain the module `json`."}]}
{"id": 3, "messages": [{"role": "user", "content": "How do I delete a whole directory tree? I am in a hurry."}]}
QUESTIONS
[ -s "$demo/scored.jsonl" ] || llamactl generate "$demo/chat" "$questions" -k 4 --temperature 1 --max-new-tokens 32 |
    llamactl score --reward "helpfulness=$demo/helpful-rm" --reward "safety=$demo/safe-rm" -o "$demo/scored.jsonl"
python3 - "$demo/scored.jsonl" <<'SHOW'
import json, sys
from itertools import groupby

with open(sys.argv[1], encoding="utf-8") as file:
    samples = [json.loads(line) for line in file]
for _, group in groupby(samples, key=lambda sample: sample["id"]):
    best, *_, worst = sorted(group, key=lambda sample: -sample["scores"]["helpfulness"])
    print(f"    > {best['messages'][-1]['content']}")
    for name, sample in (("best", best), ("worst", worst)):
        scores = ", ".join(f"{kind} {score:+.2f}" for kind, score in sample["scores"].items())
        print(f"    {name:5} ({scores}): {' '.join(sample['response'].split())}")
    print()
SHOW

say "11/12 a round of rejection sampling: the best of 8 answers to each question, learned from in one pipe"
held="$demo/questions-held-out.jsonl"
[ -s "$held" ] || llamactl convert "$demo/corpus/dialogues-valid.jsonl" --to prompts -q | awk 'NR <= 60' >"$held"
[ -s "$demo/questions-asked.jsonl" ] || llamactl convert "$demo/corpus/dialogues.jsonl" --to prompts -q |
    awk 'NR % 12 == 1 && NR <= 2880' >"$demo/questions-asked.jsonl"
[ -e "$demo/chat-v2/run.json" ] || llamactl reject-sample "$demo/chat" "$demo/questions-asked.jsonl" -k 8 \
    --temperature 0.7 --temperature 1 --max-new-tokens 40 --helpfulness "$demo/helpful-rm" --safety "$demo/safe-rm" \
    --report "$demo/round.json" --overwrite |
    llamactl sft "$demo/chat" --batch-size 16 --epochs 2 --lr 3e-4 --precision fp32 -o "$demo/chat-v2" >&2

say "12/12 PPO on top of it: 16 iterations of 64 answers, the best of them kept"
[ -s "$demo/questions-measured.jsonl" ] || llamactl convert "$demo/corpus/dialogues-valid.jsonl" --to prompts -q |
    awk 'NR > 60' >"$demo/questions-measured.jsonl"
llamactl ppo "$demo/chat-v2" "$demo/questions-asked.jsonl" --helpfulness "$demo/helpful-rm" --safety "$demo/safe-rm" \
    --iterations 16 --batch-size 64 --mini-batch-size 16 --max-new-tokens 40 --lr 1e-4 --critic-lr 1e-4 --precision fp32 \
    --eval "$demo/questions-measured.jsonl" --eval-every 8 --samples-every 8 -o "$demo/chat-ppo" >&2
for version in chat chat-v2 chat-ppo; do
    llamactl reject-sample "$demo/$version" "$held" -k 4 --max-new-tokens 40 --helpfulness "$demo/helpful-rm" \
        --safety "$demo/safe-rm" --keep all --report "$demo/$version.json" -q -o "$demo/$version.jsonl"
done
python3 - "$demo" <<'SHOW'
import json, sys

answers = {}
for version in ("chat", "chat-v2", "chat-ppo"):
    with open(f"{sys.argv[1]}/{version}.json", encoding="utf-8") as file:
        reward = json.load(file)["answers"]["reward"]
    low, high = reward["interval"]
    print(f"    {version:8} mean reward of its answers to held-out questions {reward['value']:+.2f} [{low:+.2f}, {high:+.2f}]")
    with open(f"{sys.argv[1]}/{version}.jsonl", encoding="utf-8") as file:
        first = [line for line in map(json.loads, file) if line["sampling"]["index"] == 0]
    answers[version] = {line["messages"][-1]["content"]: line["response"] for line in first}
print()
for question in list(answers["chat"])[:3]:
    print(f"    > {question}")
    for version, said in answers.items():
        print(f"    {version:8} {' '.join(said[question].split())}")
    print()
SHOW

say "made in $((SECONDS - began)) s"
printf '%-24s %-34s %s\n' what path "go on with" \
    tokenizer "$demo/tokenizer.model" "llamactl tokenize CORPUS --tokenizer $demo/tokenizer.model -o SHARDS" \
    "token shards" "$demo/shards-{docs,code}" "llamactl pretrain --size tiny --data $demo/shards-docs -o MODEL" \
    "base model" "$demo/base" "llamactl generate $demo/base --text 'Return the'" \
    "chat model" "$demo/chat" "llamactl chat $demo/chat" \
    "reward models" "$demo/{helpful,safe}-rm" "llamactl score YOUR.jsonl --reward helpfulness=$demo/helpful-rm" \
    "samples" "$demo/samples.jsonl" "less $demo/samples.jsonl" \
    "scored samples" "$demo/scored.jsonl" "less $demo/scored.jsonl" \
    "after a round" "$demo/chat-v2" "llamactl chat $demo/chat-v2" \
    "after PPO" "$demo/chat-ppo" "less $demo/chat-ppo/samples.jsonl" \
    "scores" "$demo/scores.jsonl" "llamactl eval perplexity $demo/base YOUR.txt" \
    "" "$demo/reward-scores.jsonl" "llamactl eval reward $demo/safe-rm --data $demo/safe-rm/held-out.jsonl" \
    "what it took" "$demo" "llamactl carbon --lineage $demo/chat-v2 --watts 65"
