"""The adapters beside a model, one of which is at work in it at a time."""

from __future__ import annotations

import difflib
import time
from pathlib import Path
from typing import Any

from ftkit.serving.endpoint.requests import ModelError, Refused

FOLDER = "adapters"


class Adapters:
    """All of ``adapters/`` in a model's folder, put into the loaded model by PEFT; the model's own weights stay.

    Args:
        model: of transformers.
        folder: of the model; may have no adapters.
        base: name of the model without an adapter.

    Raises:
        ModelError: one cannot be read or does not fit the model, or has the model's name.
    """

    def __init__(self, model: Any, folder: Path, base: str):
        found = sorted(path.parent for path in (folder / FOLDER).glob("*/adapter_config.json"))
        self.base, self.names = base, [path.name for path in found]
        self._loaded_at, self._active = int(time.time()), ""
        self._wrapped: Any = None
        if base in self.names:
            raise ModelError(f"{folder / FOLDER / base} has the name of the model itself")
        for path in found:
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

    def named(self, model: str) -> str:
        """The adapter that a request's ``model`` means; empty for the model itself.

        Raises:
            Refused: none has that name. Where there are no adapters, any name means the model.
        """
        if model in self.names or not self.names:
            return model if self.names else ""
        if model in ("", self.base):
            return ""
        near = difflib.get_close_matches(model[:64], [*self.names, self.base], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join([self.base, *self.names])}"
        raise Refused(f"no model is called {model[:64]!r}; {hint}", "model", status=404)

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

    def listing(self) -> dict[str, Any]:
        """The model and its adapters, as OpenAI lists models."""
        each = {"object": "model", "created": self._loaded_at, "owned_by": "ftkit"}
        adapters = [{"id": name, **each, "parent": self.base} for name in self.names]
        return {"object": "list", "data": [{"id": self.base, **each}, *adapters]}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
