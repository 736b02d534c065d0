"""Seeded fuzz of the commands: every input ends in a result or in one line."""
