"""Strings and ids: the tokenizer and the chat format."""
