"""LoRA in the places asked for, no more and no fewer."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel

from ftkit.config.groups import Lora
from ftkit.errors import StageError
from ftkit.families import Family, family_of

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Trained:
    """What is trained.

    Attributes:
        modules: linear modules that are adapted, or trained whole.
        tensors: the same of expert tensors, each of all experts of a layer.
        attention: trained parameters of the modules.
        experts: trained parameters of the expert tensors.
        other: trained parameters elsewhere: biases of experts, norms, sinks, vocabulary.
        router: tokens are sent to experts by one, which stays frozen.
    """

    modules: int
    tensors: int
    attention: int
    experts: int
    other: int = 0
    router: bool = True

    @property
    def parameters(self) -> int:
        """All trained parameters."""
        return self.attention + self.experts + self.other

    def __str__(self) -> str:
        other = f", {self.other:,} others" if self.other else ""
        if not self.router:
            return f"{self.parameters:,} parameters in {self.modules} linear modules{other}"
        return (
            f"{self.parameters:,} parameters: attention {self.attention:,} in {self.modules} modules, "
            f"experts {self.experts:,} in {self.tensors} tensors{other}; router frozen"
        )


def add_lora(model: PreTrainedModel, lora: Lora) -> tuple[PeftModel, Trained]:
    """Wrap a model with new adapters, and check where they went.

    A misspelt entry of ``target_parameters`` adapts nothing and PEFT says nothing as long as another entry matches
    something; here every entry must match, and what was adapted must be what all entries together ask for.

    Raises:
        StageError: an entry matches nothing or what may not be trained (router, vocabulary), or the adapters are not
        where they
            were asked for.
    """
    if lora.lora_dropout and lora.target_parameters:
        raise StageError(
            f"lora.lora_dropout={lora.lora_dropout}, but PEFT has no dropout on expert tensors",
            cure="lora.lora_dropout=0.0, or lora=attention",
        )
    modules, tensors = _wanted_modules(model, lora.target_modules), _wanted_tensors(model, lora.target_parameters or [])
    if not modules and not tensors:
        raise StageError("neither lora.target_modules nor lora.target_parameters names anything", cure="lora=experts")
    settings = lora.model_dump()
    if family_of(model.config.model_type).router and modules and lora.target_modules == "all-linear":
        # PEFT 0.21 takes all-linear of most models with experts for their routers and experts too
        settings["target_modules"] = sorted({name.rpartition(".")[2] for name in modules})
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", bias="none", **settings))
    assert isinstance(wrapped, PeftModel)
    return wrapped, check_placement(wrapped, modules, tensors)


def train_all(model: PreTrainedModel, family: Family) -> Trained:
    """Train every weight but the router's: without its balance loss it would come to prefer few experts."""
    modules, tensors = _wanted_modules(model, "all-linear"), _wanted_tensors(model, list(family.expert_tensors))
    counts = {"attention": 0, "experts": 0, "other": 0}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in family.router))
        if parameter.requires_grad:
            owner = name.rpartition(".")[0]
            counts["attention" if owner in modules else "experts" if name in tensors else "other"] += parameter.numel()
    return Trained(modules=len(modules), tensors=len(tensors), router=bool(family.router), **counts)


def bare_model(model: nn.Module) -> PreTrainedModel:
    """The causal model itself, whether or not PEFT has wrapped it."""
    found = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(found, PreTrainedModel)
    return found


def check_placement(model: PeftModel, modules: set[str], tensors: set[str]) -> Trained:
    """Compare what is adapted with what was asked for, and see that nothing else is trained.

    Args:
        modules: names of the linear modules asked for, as in the bare model.
        tensors: names of the expert tensors asked for.

    Raises:
        StageError: they differ, or a weight that is no adapter would be trained.
    """
    adapted = {bare_name(name): module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    found_modules = {name for name, module in adapted.items() if not isinstance(module, ParamWrapper)}
    found_tensors = {
        f"{bare_name(name)}.{module.parameter_name}"
        for name, module in model.named_modules()
        if isinstance(module, ParamWrapper)
    }
    for asked, found in ((modules, found_modules), (tensors, found_tensors)):
        if asked != found:
            missing, extra = sorted(asked - found), sorted(found - asked)
            said = " and ".join(
                f"{len(names)} {what}, {names[0]} first"
                for names, what in ((missing, "not adapted"), (extra, "adapted unasked"))
                if names
            )
            raise StageError(
                f"LoRA is not where it was asked for: {said}", cure="use the versions in environment/requirements.txt"
            )
    counts = {"experts": 0, "attention": 0}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if ".lora_A." not in name and ".lora_B." not in name:
            raise StageError(f"{bare_name(name)} would be trained, and is no adapter", cure="lora=experts")
        counts["experts" if ".experts." in name else "attention"] += parameter.numel()
    router = bool(family_of(bare_model(model).config.model_type).router)
    return Trained(modules=len(modules), tensors=len(tensors), router=router, **counts)


def _wanted_modules(model: PreTrainedModel, targets: str | list[str]) -> set[str]:
    head = model.get_output_embeddings()
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    if targets == "all-linear":
        return linear
    if isinstance(targets, str):
        matched = {name for name in linear if re.fullmatch(targets, name)}
        return matched or _refuse("lora.target_modules", targets, linear)
    return {
        name
        for target in targets
        for name in (_ending_in(target, linear) or _refuse("lora.target_modules", target, linear))
    }


def _wanted_tensors(model: PreTrainedModel, targets: list[str]) -> set[str]:
    experts = {name for name, tensor in model.named_parameters() if ".experts." in name and tensor.ndim == 3}
    return {
        name
        for target in targets
        for name in (_ending_in(target, experts) or _refuse("lora.target_parameters", target, experts))
    }


def _ending_in(target: str, names: Iterable[str]) -> set[str]:
    return {name for name in names if name == target or name.endswith(f".{target}")}


def _refuse(key: str, target: str, names: Iterable[str]) -> set[str]:
    """Raise with the nearest of all names and of all their endings."""
    endings = {".".join(name.split(".")[i:]) for name in names for i in range(name.count(".") + 1)}
    of_every_layer = sorted(ending for ending in endings if not re.search(r"(^|\.)\d+\.", ending))
    near_first = of_every_layer if difflib.get_close_matches(target, of_every_layer, 1) else sorted(endings)
    close = difflib.get_close_matches(target, near_first, 1)
    example = max(of_every_layer, key=lambda ending: ending.count("."), default="lora=attention")
    hint = f"did you mean {close[0]}?" if close else f"for instance {example}"
    raise StageError(f"{key}: {target!r} names nothing in this model that can be trained", cure=hint)


def bare_name(name: str) -> str:
    """A module's name in the bare model, from its name in the one that PEFT has wrapped."""
    return name.removeprefix(PREFIX).replace(".base_layer", "")
