#!/usr/bin/env bash
# The chain on what every Python installation carries: text -> tokenizer -> shards -> base model -> chat model -> answers.
#
#   examples/demo.sh [DIR]
#
# A few million parameters, 4 to 10 minutes on two cores. Stopped half-way, the same command goes on; run again, it makes
# nothing twice.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
demo=${1:-demo}
began=$SECONDS

say() { printf '\n== %s\n' "$*" >&2; }

say "1/8 corpus: the standard library's documentation topics, docstrings and sources; questions about them"
[ -s "$demo/corpus/valid.jsonl" ] || python3 "$here/stdlib_corpus.py" "$demo/corpus"
[ -s "$demo/corpus/dialogues-valid.jsonl" ] || python3 "$here/stdlib_dialogues.py" "$demo/corpus"
llamactl validate "$demo/corpus/dialogues.jsonl" --held-out "$demo/corpus/dialogues-valid.jsonl"

say "2/8 tokenizer: 4,096 pieces"
llamactl train-tokenizer "$demo"/corpus/{docs,code}.jsonl --vocab-size 4096 -o "$demo/tokenizer.model" >&2

say "3/8 shards: two sources"
for source in docs code; do
    llamactl tokenize "$demo/corpus/$source.jsonl" --tokenizer "$demo/tokenizer.model" -o "$demo/shards-$source" >&2
done

say "4/8 base model: docs and code, 3 to 1"
llamactl pretrain --size tiny --dim 256 --layers 4 --heads 8 --kv-heads 4 --ffn 688 \
    --data "$demo/shards-docs=0.75" --data "$demo/shards-code=0.25" \
    --context 256 --batch-size 16 --steps 240 --lr 3e-3 -o "$demo/base" >&2

say "5/8 what it writes"
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

say "6/8 perplexity on held-out documentation"
llamactl eval perplexity "$demo/base" "$demo/corpus/valid.jsonl" -o "$demo/scores.jsonl"

say "7/8 chat model: fine-tuned on questions about the library"
llamactl sft "$demo/base" "$demo/corpus/dialogues.jsonl" --eval "$demo/corpus/dialogues-valid.jsonl" \
    --batch-size 16 --epochs 1 --lr 1e-3 -o "$demo/chat" >&2

say "8/8 a short conversation"
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

say "made in $((SECONDS - began)) s"
printf '%-24s %-34s %s\n' what path "go on with" \
    tokenizer "$demo/tokenizer.model" "llamactl tokenize CORPUS --tokenizer $demo/tokenizer.model -o SHARDS" \
    "token shards" "$demo/shards-{docs,code}" "llamactl pretrain --size tiny --data $demo/shards-docs -o MODEL" \
    "base model" "$demo/base" "llamactl generate $demo/base --text 'Return the'" \
    "chat model" "$demo/chat" "llamactl chat $demo/chat" \
    "samples" "$demo/samples.jsonl" "less $demo/samples.jsonl" \
    "scores" "$demo/scores.jsonl" "llamactl eval perplexity $demo/base YOUR.txt"
