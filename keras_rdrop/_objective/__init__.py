"""The training objective of each output: its compiled loss and the divergence between its passes."""
