"""The job of ``fairsteer generate``: what a model writes, and what it writes when its hidden states are steered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fairsteer import persistence
from fairsteer._utils.labels import label_text
from fairsteer.concepts import ConceptSteering
from fairsteer.moments import SubgroupMoments
from fairsteer.transformer import FairSteeringTransformer

from . import UsageError
from ._fitting import library_problems, quoting_warnings
from ._language import LanguageModel, load_model
from ._printing import Reporter
from ._question import label_named

__all__ = ["generate_text"]

#: Groups that stand beside each other, unless they are named.
_MOST_GROUPS = 3


def generate_text(
    *,
    model: Path,
    steering: Path,
    prompts: Sequence[str],
    groups: Sequence[str],
    layer: str | None,
    concept: str | None,
    strength: float,
    max_new_tokens: int,
    temperature: float,
    random_state: int,
    dtype: str,
    device: str,
    as_json: bool = False,
) -> None:
    """Print texts before and after steering beside each other.

    Parameters
    ----------
    model, steering : Path
        The model; moments, a map or a concept that `fairsteer.persistence.save` wrote.
    prompts, groups : sequence of str
        Texts to be continued, each for each group; no group: all, or the first few.
    layer : str or None
        Name or number of the layer; None: as the file of the steering says.
    concept : str or None
        Class to steer towards, of a concept.
    strength : float
        How far; 1 is all the way of a map.
    max_new_tokens : int
        Tokens to generate.
    temperature : float
        0: the likeliest token each time.
    random_state : int
        Of the sampling, the same before and after.
    dtype, device : str
        Type of the weights and where the model runs.
    as_json : bool
        Whether one JSON object is printed instead of text.

    Raises
    ------
    UsageError
        For any input the user can put right.
    """
    report = Reporter(as_json=as_json)
    source, written_for = _steering(steering)
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UsageError("--prompt is empty; give the beginning of a text.")
    asked = layer if layer is not None else written_for
    if asked is None:
        raise UsageError(f"{steering.name} does not say which layer it is of; name it with --layer.")
    with report.busy("loading the model"):
        loaded = load_model(model, dtype=dtype, device=device, generates=True, command="generate")
    layers = loaded.layers([asked])
    from fairsteer.torch import steering_hooks

    with library_problems(), quoting_warnings(report.note):
        module, labels, strengths = _module(source, concept, loaded, strength)
    shown = [label_named(text, labels, "--group") for text in groups] or labels[:_MOST_GROUPS]
    if len(set(strengths.values())) > 1:
        each = "; ".join(f"{label_text(label)} {strengths[label]:.3g}" for label in shown)
        report.note(f"The concept was equalised: strength {strength:g} is {each}.")
    steered = dict.fromkeys(layers, module)
    with library_problems(), report.busy("generating"):
        before = _continued(loaded, prompts, max_new_tokens, temperature, random_state)
        after = {}
        for label in shown:
            of_all = [label] * len(prompts)
            with steering_hooks(loaded.model, steered, sensitive_features=of_all, strength=strength):
                after[label] = _continued(loaded, prompts, max_new_tokens, temperature, random_state)
    for i, prompt in enumerate(prompts):
        report.say(f"{_line(prompt)} …\n")
        beside = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for heading in ("before", *(f"{label_text(label)}, steered" for label in after)):
            beside.add_column(_line(heading), ratio=1, overflow="fold")
        beside.add_row(*(_line(text[i]) or "(nothing)" for text in (before, *after.values())))
        report.say(beside)
        report.say()
    texts = [
        {
            "prompt": prompt,
            "before": before[i],
            "steered": [{"group": label, "strength": strengths[label], "text": after[label][i]} for label in after],
        }
        for i, prompt in enumerate(prompts)
    ]
    report.result("generate", layer=layers[0], strength=strength, texts=texts)


def _steering(path: Path) -> tuple[Any, str | None]:
    try:
        source = persistence.load(path)
        extra = persistence.read_extra(path) or {}
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}.") from None
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    layer = extra.get("layer")
    return source, layer if isinstance(layer, str) else None


def _module(
    source: Any, concept: str | None, loaded: LanguageModel, strength: float
) -> tuple[Any, list[Any], dict[Any, float]]:
    """Make the module that steers, name the groups that it knows, and how far each is steered."""
    from fairsteer.torch import ConceptSteeringModule, SteeringModule

    device = loaded.model.device
    if isinstance(source, ConceptSteering):
        classes = source.classes_.tolist()
        target = None if concept is None else label_named(concept, classes, "--concept", "class")
        moves = ConceptSteeringModule(source, target, device=device)
        amounts = source.group_strengths(strength, target).tolist()
        return moves, list(moves.groups), dict(zip(moves.groups, amounts, strict=True))
    if concept is not None:
        raise UsageError("--concept belongs to a ConceptSteering, and the file holds none.")
    if isinstance(source, SubgroupMoments):
        # Tied moments of a stream keep no scatter of single classes, which weighing them alike takes.
        alike = source.covariance != "tied"
        source = FairSteeringTransformer(map_type="affine", standardize=alike).fit_moments(source)
    module = SteeringModule(source, device=device)
    return module, list(module.groups), dict.fromkeys(module.groups, strength)


def _continued(
    loaded: LanguageModel, prompts: Sequence[str], max_new_tokens: int, temperature: float, random_state: int
) -> list[str]:
    import torch

    inputs = dict(loaded.inputs(list(prompts)))
    inputs.pop("logits_to_keep", None)
    how = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    torch.manual_seed(random_state)
    with torch.no_grad():
        tokens = loaded.model.generate(
            **inputs, max_new_tokens=max_new_tokens, pad_token_id=loaded.tokenizer.pad_token_id, **how
        )
    new = tokens[:, inputs["input_ids"].shape[1] :]
    texts: list[str] = loaded.tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def _line(text: str) -> str:
    """Text on one line, without what a terminal would obey instead of print."""
    flat = " ".join(text.split())
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in flat)
