"""The documents; `generate` writes the reference pages among them from the code."""
