"""The laboratory: trainer, claims, reports and commands. Nothing outside imports it."""
