"""The families that flashlite streams, and the activations that it streams them with. A new family is one line here."""

from __future__ import annotations

from typing import Any

from flashlite.errors import CheckpointError
from flashlite.families.activation import Activation
from flashlite.families.arcee import ARCEE
from flashlite.families.falcon import FALCON
from flashlite.families.family import Family
from flashlite.families.llama import LLAMA
from flashlite.families.minicpm import MINICPM
from flashlite.families.mistral import MISTRAL
from flashlite.families.nemotron import NEMOTRON
from flashlite.families.opt import OPT
from flashlite.families.persimmon import PERSIMMON
from flashlite.families.phi import PHI
from flashlite.families.prosparse import PROSPARSE, SPARSELM

FAMILIES = {  # by what config.json calls them
    "opt": OPT, "falcon": FALCON, "phi": PHI, "persimmon": PERSIMMON, "llama": LLAMA, "mistral": MISTRAL,
    "nemotron": NEMOTRON, "arcee": ARCEE, "sparsellama": PROSPARSE, "minicpm": MINICPM,
    "llama_sparse_relu": SPARSELM,
}  # fmt: skip
ACTIVATIONS = ("relu", "relu2", "fatrelu", "drelu")


def family_of(content: dict[str, Any]) -> Family:
    """The family of a checkpoint's config.json. Raises CheckpointError if it is none that streams."""
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(f"model type {kind!r:.60} is not supported: flashlite streams {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def activation_of(config: Any, family: Family) -> Activation:
    """What a configuration's neurons compute. Raises CheckpointError unless ReLU leaves some of them at zero."""
    name = getattr(config, family.activation)
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"activation {name!r:.40} is not supported: only ReLU leaves neurons at exactly zero, so only with ReLU "
            "can their weights stay on flash; `flashlite relufy MODEL OUT --text FILES` trains such a model on with "
            "ReLU"
        )
    if name == "relu2":
        return Activation(power=2)
    if name == "drelu":
        return Activation(both=True)
    return Activation(threshold=_threshold(config)) if name == "fatrelu" else Activation()


def _threshold(config: Any) -> float:
    threshold = getattr(config, "hidden_act_param", None)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or threshold < 0:
        raise CheckpointError(f"the activation fatrelu needs a hidden_act_param from 0, not {threshold!r:.40}")
    return float(threshold)
