"""What training put around a question, kept beside the weights so that the endpoint's prompt is the training's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ftkit.chat.messages import ModelError, system_message

if TYPE_CHECKING:
    from ftkit.config.schema import Config

FILE = "ftkit.json"


class ServingDefaults(NamedTuple):
    """Content of ``ftkit.json`` in a model's folder.

    Attributes:
        name: of the model, for requests that name one.
        system: message that a bare prompt gets.
        reasoning_effort: of a request that gives none.
        current_date: YYYY-MM-DD, in Harmony's system block; today if empty.
    """

    name: str = ""
    system: str = ""
    reasoning_effort: str = "medium"
    current_date: str = ""

    @classmethod
    def of(cls, config: Config, name: str) -> ServingDefaults:
        """Those of a model that is trained with this configuration."""
        dataset = config.dataset
        return cls(name, system_message(dataset), dataset.reasoning_effort, dataset.current_date)

    @classmethod
    def read(cls, folder: Path) -> ServingDefaults:
        """Those of the model in a folder; the usual ones if it has no file.

        Raises:
            ModelError: the file cannot be read.
        """
        try:
            found = json.loads((folder / FILE).read_text(encoding="utf-8"))
            texts = {field: found[field] for field in cls._fields if found.get(field)}
            if wrong := [field for field, text in texts.items() if not isinstance(text, str)]:
                raise ValueError(f"{wrong[0]} is {texts[wrong[0]]!r}, not text")
            return cls(**texts)
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{folder / FILE} cannot be read: {error}") from error

    def write(self, folder: Path) -> None:
        text = json.dumps(self._asdict(), ensure_ascii=False, indent=1)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")
