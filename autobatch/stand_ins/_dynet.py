"""What ``import _dynet`` means once `autobatch.dynet.install` was called: this library."""

from autobatch.dynet import names

globals().update(names())
