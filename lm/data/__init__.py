"""Corpora, tokenizer, packed rows and the token stream."""
