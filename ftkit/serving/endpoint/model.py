"""The model that an endpoint serves: found, checked, loaded, and asked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ftkit.serving.endpoint.adapters import Adapters
from ftkit.serving.endpoint.batching import Busy, Job, Scheduler
from ftkit.serving.endpoint.harmony import Completion, Harmony, Reader
from ftkit.serving.endpoint.requests import Limits, ModelError, Refused, Request, TrainedWith

PINNED_CLOCK = "{%- macro strftime_now(format) -%}{{ current_date }}{%- endmacro -%}\n"
"""Put before a chat template, shadows its clock: transformers 5.23 turns a function that is passed to it into text."""
SHARE_OF_TIME = 0.95
"""Of a request's time limit, for the model: the answer has to get out as well."""


def find_model(root: Path, depth: int = 4) -> Path:
    """The one folder with a config.json in or below ``AZUREML_MODEL_DIR``; folders inside a model are not searched.

    Raises:
        ModelError: there is none, or several.
    """
    found, level = [], [root]
    for _ in range(depth + 1):
        models = [folder for folder in level if (folder / "config.json").is_file()]
        found += models
        inside = [path for folder in level if folder not in models and folder.is_dir() for path in folder.iterdir()]
        level = sorted(path for path in inside if path.is_dir() and not path.name.startswith("."))
    if len(found) != 1:
        names = ", ".join(str(folder.relative_to(root)) for folder in found)
        what = f"several models ({names})" if found else "no folder with a config.json"
        raise ModelError(f"AZUREML_MODEL_DIR={root} holds {what}; one model is served")
    return found[0]


def check_weights(folder: Path) -> None:
    """See that every weights file is there and whole, before minutes go into loading.

    Raises:
        ModelError: names the file.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / "model.safetensors.index.json"
    try:
        names = json.loads(path.read_bytes())["weight_map"].values() if path.exists() else ["model.safetensors"]
        for path in sorted(folder / name for name in set(names)):
            with safe_open(path, framework="pt"):
                pass
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing") from error
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path} is truncated or damaged: {error}") from error


class Served:
    """A loaded model that answers many requests at a time.

    Args:
        folder: of the model, with adapters, if any, in ``adapters/<name>/`` in PEFT's format.
        limits: of requests.

    Raises:
        ModelError: it or one of its adapters cannot be loaded whole, or it is not a gpt-oss.
    """

    def __init__(self, folder: Path, limits: Limits):
        from transformers import AutoTokenizer

        check_weights(folder)
        self.limits, self.trained = limits, TrainedWith.read(folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not self.tokenizer.chat_template:
            raise ModelError(f"{folder} holds no chat template")
        self.harmony = Harmony(self.tokenizer)
        self.model = _load_model(folder)
        self.adapters = Adapters(self.model, folder, self.trained.name or folder.name)
        self.context: int = self.model.config.max_position_embeddings
        self.scheduler = Scheduler(
            self.model,
            self.harmony.stop_ids,
            limits.batch_size,
            limits.concurrent_requests,
            self.adapters.select,
        )
        self.prompt_ids(Request([{"role": "user", "content": "…"}]))

    def begin(self, request: Request) -> Answering:
        """Take a request on.

        Raises:
            Refused: it is too long, names no model that is here, or too many are in hand.
        """
        job = Job(
            self.prompt_ids(request),
            request.max_new_tokens,
            time.monotonic() + SHARE_OF_TIME * self.limits.timeout_ms / 1000,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stepwise=request.stream or bool(request.stop),
            adapter=self.adapters.named(request.model),
        )
        try:
            self.scheduler.submit(job)
        except Busy as error:
            busy = f"{self.limits.concurrent_requests} requests are being answered; try again later"
            raise Refused(busy, status=429) from error
        return Answering(request, job, self.harmony)

    def prompt_ids(self, request: Request) -> list[int]:
        """Token ids of the chat, up to where the assistant takes over."""
        options: dict[str, Any] = {"reasoning_effort": request.reasoning_effort}
        if date := self.trained.current_date:
            options |= {"chat_template": PINNED_CLOCK + self.tokenizer.chat_template, "current_date": date}
        text = self.tokenizer.apply_chat_template(
            request.messages, tokenize=False, add_generation_prompt=True, **options
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        room = min(self.limits.max_input_tokens, self.context - request.max_new_tokens)
        if len(ids) > room:
            beside = f"beside max_new_tokens={request.max_new_tokens} " if room < self.limits.max_input_tokens else ""
            raise Refused(f"the request has {len(ids)} tokens; {beside}at most {room} are taken", request.given)
        return ids


class Answering:
    """One request while it is being answered."""

    def __init__(self, request: Request, job: Job, harmony: Harmony):
        self.request, self.job = request, job
        self._harmony, self._reader = harmony, Reader(harmony)
        self._read, self._held, self._stopped = 0, "", False

    def pieces(self, gone: Callable[[], bool] = lambda: False) -> Iterator[tuple[str, str]]:
        """New text, each with ``thinking`` or ``output``; a stop text and what follows it are left out.

        Args:
            gone: whether the client has gone, which ends it.

        Raises:
            Refused: the model failed, or the request's time was over before its turn came.
        """
        for token in self.job.tokens(gone):
            self._read += 1
            yield from self._before_stop(self._reader.feed(token))
            if self._stopped:
                self.job.cancel("stop")
                break
        if self.job.ended == "never begun":
            raise Refused("earlier requests took all the time of this one; try again later", status=429)
        if self.job.ended == "failed":
            raise Refused("the model failed; the log says why", status=500)
        yield from self._before_stop(self._reader.close())
        if self._held and not self._stopped:
            yield "output", self._held

    def whole(self, gone: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """The answer in ftkit's format; see ``pieces``."""
        for _ in self.pieces(gone):
            pass
        return self.result()

    def result(self) -> dict[str, Any]:
        """The answer in ftkit's format, once there are no more pieces."""
        return describe(self._reader.completion(), self.request, len(self.job.prompt), self._read)

    def _before_stop(self, pieces: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Hold back what may be the beginning of a stop text."""
        if not self.request.stop:
            yield from pieces
            return
        may_begin = max(map(len, self.request.stop)) - 1
        for kind, text in pieces:
            if kind == "output" and not self._stopped:
                text = self._held + text
                cut = _first(text, self.request.stop)
                self._stopped = cut is not None
                sure = max(0, len(text) - may_begin) if cut is None else cut
                text, self._held = text[:sure], text[sure:]
            if text:
                yield kind, text


def describe(completion: Completion, request: Request, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The JSON answer; ``note`` says why something is missing from it."""
    cut = _first(completion.output, request.stop)
    stopped = completion.ended or cut is not None
    notes = []
    if not stopped:
        full = completion_tokens >= request.max_new_tokens
        notes.append(f"cut off by {f'max_new_tokens={request.max_new_tokens}' if full else 'the time for one request'}")
    if not completion.output:
        notes.append("the model ended without a final answer" if stopped else "the final answer had not begun")
    return {
        "output": completion.output[:cut],
        "thinking": completion.thinking,
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
        "finish_reason": "stop" if stopped else "length",
    } | ({"note": "; ".join(notes)} if notes else {})


def _first(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest of the stop texts begins."""
    return min((at for at in map(text.find, stop) if at >= 0), default=None)


def _load_model(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    cuda = torch.cuda.is_available()
    # in bfloat16, rounding decides a token now and then, and it depends on the batch: 2 answers in 10,000 differed
    options: dict[str, Any] = {"dtype": torch.bfloat16 if cuda else torch.float32}
    options["device_map"] = "auto" if cuda else None
    options["attn_implementation"] = "eager"  # the batch makes its own masks
    packed = getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "quantization_config", None) or {}
    if packed.get("quant_method") == "mxfp4":
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, **options
    )
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if wrong := sorted(map(str, info.get(kind) or ())):
            raise ModelError(f"{folder} has {kind.replace('_', ' ')}: {wrong[0]}, {len(wrong)} in all")
    if {"cpu", "disk"} & {str(place) for place in getattr(model, "hf_device_map", {}).values()}:
        raise ModelError(f"{folder} does not fit into the memory of the GPU")
    return model.eval()
