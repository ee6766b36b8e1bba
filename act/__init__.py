"""Activation transport: the method and the loader, on torch, numpy and safetensors alone.

```python
import act

steer = act.load("runs/less-toxic/steer")
with act.apply(steer, model, strength=0.5):
    model.generate(...)
```
"""

from act import transport
from act.apply import apply
from act.estimation import Sequential
from act.fit import fit_steer
from act.marginal import Marginal
from act.steer import Steer, load
from act.transport import Transport, TransportMap

__all__ = ["Marginal", "Sequential", "Steer", "Transport", "TransportMap", "apply", "fit_steer", "load", "transport"]
