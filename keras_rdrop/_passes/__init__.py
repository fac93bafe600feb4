"""How the passes of R-Drop are laid out, where they part, and the training step that runs them."""
