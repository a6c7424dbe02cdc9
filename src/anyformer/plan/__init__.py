"""Plans of training before it is begun: memory by part, operations, time and money.

The package can be called: ``af.plan("gpt2")`` is `anyformer.plan.plan.plan`.
"""

import sys

from anyformer import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
