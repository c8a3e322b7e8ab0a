#!/usr/bin/env bash
# The base chain on what every Python installation carries: text -> tokenizer -> shards -> base model -> samples, scores.
#
#   examples/demo.sh [DIR]
#
# A few million parameters, 4 minutes on two cores with bf16 instructions, 13 without. Stopped half-way, the same command goes on; run again, it makes
# nothing twice.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
demo=${1:-demo}
began=$SECONDS

say() { printf '\n== %s\n' "$*" >&2; }

say "1/6 corpus: the standard library's documentation topics, docstrings and sources"
[ -s "$demo/corpus/valid.jsonl" ] || python3 "$here/stdlib_corpus.py" "$demo/corpus"

say "2/6 tokenizer: 4,096 pieces"
llamactl train-tokenizer "$demo"/corpus/{docs,code}.jsonl --vocab-size 4096 -o "$demo/tokenizer.model" >&2

say "3/6 shards: two sources"
for source in docs code; do
    llamactl tokenize "$demo/corpus/$source.jsonl" --tokenizer "$demo/tokenizer.model" -o "$demo/shards-$source" >&2
done

say "4/6 base model: docs and code, 3 to 1"
llamactl pretrain --size tiny --dim 256 --layers 4 --heads 8 --kv-heads 4 --ffn 688 \
    --data "$demo/shards-docs=0.75" --data "$demo/shards-code=0.25" \
    --context 256 --batch-size 16 --steps 450 --lr 3e-3 -o "$demo/base" >&2

say "5/6 what it writes"
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

say "6/6 perplexity on held-out documentation"
llamactl eval perplexity "$demo/base" "$demo/corpus/valid.jsonl" -o "$demo/scores.jsonl"

say "made in $((SECONDS - began)) s"
printf '%-24s %-34s %s\n' what path "go on with" \
    tokenizer "$demo/tokenizer.model" "llamactl tokenize CORPUS --tokenizer $demo/tokenizer.model -o SHARDS" \
    "token shards" "$demo/shards-{docs,code}" "llamactl pretrain --size tiny --data $demo/shards-docs -o MODEL" \
    "base model" "$demo/base" "llamactl generate $demo/base --text 'Return the'" \
    "samples" "$demo/samples.jsonl" "less $demo/samples.jsonl" \
    "scores" "$demo/scores.jsonl" "llamactl eval perplexity $demo/base YOUR.txt"
