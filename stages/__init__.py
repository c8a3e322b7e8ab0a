"""The recipe's verbs, one file a subcommand, in the paper's order.

convert, validate; train_tokenizer -> tokenize -> pretrain -> sft -> generate, chat, eval_perplexity, eval_bench;
sft -> rm_train -> score, eval_reward; reject_sample -> sft -> ppo; gatt_synth -> sft; distill_safety -> sft;
eval_gatt, eval_refusals, of answers; carbon, lineage, of all of them; plot
"""
