"""Steer the hidden states of torch models, and gather what is needed to fit the steering.

`SteeringModule` is steering as a module of your own, and `ConceptSteeringModule` one that adds a concept's directions;
`steering_hooks` steers inside a model as it is, whether from Hugging Face or plain torch; `fold_into` makes the
steering of one group part of a layer's weights; `collect_activations` turns activations into moments, batch by batch,
without keeping them.
"""

from fairsteer.torch._concepts import ConceptSteeringModule
from fairsteer.torch._folding import FoldedSteering, fold_into
from fairsteer.torch._hooks import SteeringHandle, collect_activations, steering_hooks
from fairsteer.torch._module import SteeringModule

__all__ = [
    "ConceptSteeringModule",
    "FoldedSteering",
    "SteeringHandle",
    "SteeringModule",
    "collect_activations",
    "fold_into",
    "steering_hooks",
]
