"""The recipe's verbs, one file a subcommand, in the paper's order.

train_tokenizer -> tokenize -> pretrain -> generate, chat, eval
"""
