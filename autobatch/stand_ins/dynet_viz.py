"""What ``import dynet_viz`` means once `autobatch.dynet.install` was called."""

from autobatch.dynet import print_graphviz

__all__ = ["print_graphviz"]
