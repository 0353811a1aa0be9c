"""What ``import dynet_config`` means once `autobatch.dynet.install` was called: the one module with the settings."""

import sys

from autobatch import dynet_config

sys.modules[__name__] = dynet_config
