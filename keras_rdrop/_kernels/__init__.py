"""Cross-entropy and symmetric KL computed together, with a hand-written gradient."""
