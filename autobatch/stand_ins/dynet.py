"""What ``import dynet`` means once `autobatch.dynet.install` was called: this library, with the flags of the command line."""

import sys

from autobatch import dynet_config
from autobatch.dynet import names

globals().update(names())
dynet_config.start(sys.argv)
