"""Text and tokens: tokenizers, chat templates, text as it comes, prompts as they are checked. Nothing imports torch."""
