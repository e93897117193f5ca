"""Chats: their messages, how a model family writes them as tokens, and how an answer is read back."""
