"""Jobs answered in this process: the model of transformers, its adapters by PEFT, in batches of ftkit's own."""

from __future__ import annotations

from collections.abc import Sequence

from ftkit.chat.messages import ModelError
from ftkit.serving.endpoint.adapters import LoadedAdapters
from ftkit.serving.endpoint.batching import Scheduler
from ftkit.serving.endpoint.engine import Start
from ftkit.serving.endpoint.loading import load_model
from ftkit.serving.endpoint.sampling import SETTINGS


class TransformersEngine(Scheduler):
    """See ``Engine``.

    Raises:
        ModelError: several processes are to share it.
    """

    passed_on: Sequence[str] = SETTINGS
    notes: Sequence[str] = ()

    def __init__(self, start: Start):
        if start.fronts > 1:
            what = f"{start.fronts} processes are to share one vLLM, and the engine here is transformers"
            raise ModelError(f"{what}: deployment.front_processes=1, or deployment.engine=vllm")
        stop_ids, _ = start.read_words()
        self.model = load_model(start.folder)
        self.adapters = LoadedAdapters(self.model, start.folder, start.names)
        self.where = f"{self.model.device} in {str(self.model.dtype).removeprefix('torch.')}"
        limits = start.limits
        super().__init__(self.model, stop_ids, limits.batch_size, limits.concurrent_requests, self.adapters.select)

    @classmethod
    def suits(cls) -> bool:
        return True

    def context(self) -> int | None:
        return None

    @property
    def is_ready(self) -> bool:
        return True

    def stop(self) -> None:
        """Nothing to end: its thread ends with the process."""


ENGINE = TransformersEngine
