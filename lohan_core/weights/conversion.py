"""From a checkpoint's names to the model's, by the rules of transformers itself.

Since version 5, transformers builds models whose parameters differ from what checkpoints hold: experts are merged into
one tensor, names are changed. ``from_pretrained`` converts, ``save_pretrained`` converts back, both for a whole model
at once. Here the first half of ``from_pretrained`` (which tensors go where) runs once over all names, and its second
half (reading and merging) per tensor of the model. The rules, the matching and the merging are transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter

__all__ = ["Conversions", "Recipe", "find_conversions"]


@define(eq=False)
class Recipe:
    """How the checkpoint's ``sources`` become tensors of the model: by ``converter``, or by renaming if that is None.

    ``sources`` are pairs of the checkpoint's name and the converter's pattern that it matched. ``targets`` are names in
    the model; a converter that splits has several.
    """

    targets: tuple[str, ...]
    converter: WeightConverter | None
    sources: list[tuple[str, str]] = field(factory=list)

    def cook(self, load: Callable[[str], torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """Read the sources and convert them; returns tensors by the model's names, in the checkpoint's dtype."""
        if self.converter is None:
            return {self.targets[0]: load(self.sources[0][0])}
        converter = deepcopy(self.converter)
        for name, pattern in self.sources:
            converter.add_tensor(self.targets[0], name, pattern, partial(load, name))
        converted = converter.convert(self.targets[0], model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}


@frozen(kw_only=True)
class Conversions:
    """Recipes by each of their targets; the checkpoint's names that lead nowhere; the rules that matched something."""

    recipes: dict[str, Recipe]
    unexpected: tuple[str, ...]
    rules_used: list[Any]


def find_conversions(model: PreTrainedModel, checkpoint_names: Iterable[str]) -> Conversions:
    """Match a checkpoint's names with the names of ``model``, which may be on the meta device.

    Follows ``transformers.core_model_loading.convert_and_load_state_dict_in_model``, the order of names included: some
    rules depend on what they saw before.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    wanted = model.state_dict()
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}

    recipes: dict[str, Recipe] = {}
    unexpected = []
    for name in sorted(checkpoint_names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if target not in wanted and name in wanted:  # a rule took it for something else
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, wanted)
        if target not in wanted:
            unexpected.append(name)
            continue
        recipe = recipes.get(target)
        if recipe is None:
            converter = None if pattern is None else converter_of[pattern]
            recipe = Recipe(targets=_targets(target, converter), converter=converter)
            recipes.update(dict.fromkeys(recipe.targets, recipe))
        recipe.sources.append((name, pattern or name))
    return Conversions(
        recipes=recipes,
        unexpected=tuple(unexpected),
        rules_used=[rule for rule in rules if rule.was_used()],
    )


def _targets(first: str, converter: WeightConverter | None) -> tuple[str, ...]:
    if converter is None:
        return (first,)
    patterns = converter.target_patterns
    return tuple(first.replace(patterns[0], pattern) for pattern in patterns)
