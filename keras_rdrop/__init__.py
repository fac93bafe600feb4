"""R-Drop for Keras 3, on TensorFlow, JAX and PyTorch."""

from keras_rdrop import divergences, layers, losses, plot, recipes
from keras_rdrop.layers import RDrop
from keras_rdrop.model import RDropModel
from keras_rdrop.recipes import convert_alpha
from keras_rdrop.torch_data_parallel import TorchDataParallel

__version__ = "0.2.0"
__all__ = ["RDrop", "RDropModel", "TorchDataParallel", "__version__", "convert_alpha"]
__all__ += ["divergences", "layers", "losses", "plot", "recipes"]
