"""Pictures, films and sounds as arrays, and what each family's processor makes of them. Nothing here imports torch."""
