"""The adapters beside a model: their names, and in a model of transformers one of them at work at a time."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftkit.chat.messages import ModelError
from ftkit.serving.endpoint.refusals import Refused

FOLDER = "adapters"


class Adapters:
    """What requests may name: a model, and all of ``adapters/`` in its folder.

    Args:
        folder: of the model; may have no adapters.
        bases: names of the model without an adapter; the first is the one that answers are signed with.

    Attributes:
        folders: of the adapters, by name.

    Raises:
        ModelError: one has the model's name.
    """

    def __init__(self, folder: Path, bases: Sequence[str]):
        self.folders = {path.name: path for path in adapters_in(folder)}
        self.base, self.bases, self.names = bases[0], list(dict.fromkeys(bases)), list(self.folders)
        self._listed_at = int(time.time())
        if same := [name for name in self.bases if name in self.names]:
            raise ModelError(f"{folder / FOLDER / same[0]} has the name of the model itself")

    def named(self, model: str) -> str:
        """The adapter that a request's ``model`` means; empty for the model itself, as an empty name is.

        Raises:
            Refused: none has that name.
        """
        if model in self.names:
            return model
        if model in ("", *self.bases):
            return ""
        served = [*self.bases, *self.names]
        near = difflib.get_close_matches(model[:64], served, n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]}?" if near else f"there {'is' if len(served) == 1 else 'are'} {', '.join(served)}"
        )
        raise Refused(f"no model is called {model[:64]!r}; {hint}", "model", 404, "model_not_found")

    def listing(self) -> dict[str, Any]:
        """The model and its adapters, as OpenAI lists models."""
        return {"object": "list", "data": [self.entry(name) for name in (*self.bases, *self.names)]}

    def entry(self, model: str) -> dict[str, Any]:
        """One of them: an adapter has its ``parent``, another name of the model its ``root``.

        Raises:
            Refused: none has that name.
        """
        adapter = self.named(model)
        each = {"id": model or self.base, "object": "model", "created": self._listed_at, "owned_by": "ftkit"}
        if adapter:
            return each | {"parent": self.base}
        return each | ({"root": self.base} if each["id"] != self.base else {})


class LoadedAdapters(Adapters):
    """The same, put into the loaded model by PEFT; the model's own weights stay.

    Args:
        model: of transformers.
        folder: as ``Adapters``.
        bases: as ``Adapters``.

    Raises:
        ModelError: one cannot be read or does not fit the model, or has the model's name.
    """

    def __init__(self, model: Any, folder: Path, bases: Sequence[str]):
        super().__init__(folder, bases)
        self._active = ""
        self._wrapped: Any = None
        for path in self.folders.values():
            self._wrapped = self._load(model, path)
        if self._wrapped:
            self._wrapped.base_model.disable_adapter_layers()

    def _load(self, model: Any, path: Path) -> Any:
        try:
            from peft import PeftConfig, PeftModel
        except ModuleNotFoundError as error:
            raise ModelError(f"{path} needs {error.name}, which is not installed: pip install peft") from error
        try:
            config = PeftConfig.from_pretrained(str(path))
            if config.peft_type != "LORA":
                raise ValueError(f"it is a {config.peft_type}, and a LORA is taken")
            name = self._inner(path.name)
            wrapped = self._wrapped or PeftModel(model, config, name).eval()
            keys = wrapped.load_adapter(str(path), name)
            if wrong := sorted(keys.missing_keys) or sorted(keys.unexpected_keys):
                raise ValueError(f"{wrong[0]} is missing in it, or in the model")
        except Exception as error:  # of whichever library reads it
            raise ModelError(f"{path} does not load as an adapter of this model: {_line(error)}") from error
        return wrapped

    def _inner(self, name: str) -> str:
        """An adapter's name within PEFT, which takes no dots, nor a part of its own ``lora_``."""
        return f"adapter-{self.names.index(name)}"

    def select(self, adapter: str) -> None:
        """Put one to work, or none if the name is empty."""
        if adapter == self._active:
            return
        if adapter:
            self._wrapped.base_model.enable_adapter_layers()
            self._wrapped.set_adapter(self._inner(adapter), inference_mode=True)
        else:
            self._wrapped.base_model.disable_adapter_layers()
        self._active = adapter


def adapters_in(folder: Path) -> list[Path]:
    """Folders of the adapters beside a model."""
    return sorted(path.parent for path in (folder / FOLDER).glob("*/adapter_config.json"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
