"""What an entry of a `reference_*.py` says about one network."""

from dataclasses import dataclass
from typing import Callable, Optional

import torch.nn as nn


@dataclass
class Reference:
    """How PyTorch builds a network whose keys are the zoo's, and what it is run on."""

    # Makes the network with ten classes. Dropout is turned off by the generator; drop-path must be off already.
    build: Callable[[], nn.Module]
    # Trainable parameters of that network, where they are published; None leaves them to the comparison with the zoo's.
    parameters: Optional[int] = None
    # (batch, side of the image): small, so that CI stays fast; but two BatchNorm values or more a channel.
    batch: int = 4
    image: int = 32
    # How much each auxiliary classifier's loss counts, where training returns (logits, *auxiliary logits).
    auxiliary: float = 0.0
    # Settings of the zoo's side that the test knows, beyond the registry's name.
    settings: str = ""
