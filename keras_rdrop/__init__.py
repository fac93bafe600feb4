"""R-Drop for Keras 3: TensorFlow, JAX and PyTorch."""

from keras_rdrop import divergences, layers, losses, plot
from keras_rdrop.model import RDropModel

__version__ = "0.1.0"
__all__ = ["RDropModel", "__version__", "divergences", "layers", "losses", "plot"]
