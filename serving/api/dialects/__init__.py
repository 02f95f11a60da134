"""Other dialects than OpenAI's chat: each is translated to a conversation, and its answer back."""
