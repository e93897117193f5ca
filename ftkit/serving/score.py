"""Scoring script of an Azure ML online endpoint: one gpt-oss, asked in JSON; it answers with thinking and output apart.

Self-contained: this file is all of ftkit that an endpoint gets. Azure ML's inference server calls ``init`` once and
``run`` for each request. It needs gunicorn's gthread worker, or ``/`` is not answered while the model generates:

    GUNICORN_CMD_ARGS="--worker-class gthread --threads 8" azmlinfsrv --entry_script score.py --model_dir <folder>

Request   {"messages": [{"role": "user", "content": "…"}], "max_new_tokens": 500}, or {"prompt": "…"}; see ``FIELDS``.
Answer    {"output", "thinking", "usage": {"prompt_tokens", "completion_tokens"}, "finish_reason": "stop" | "length"},
          and "note" when something is missing. A bad request gets a 4xx with {"error": {"message", "field"}}.
Settings  FTKIT_MAX_NEW_TOKENS, FTKIT_MAX_INPUT_TOKENS, FTKIT_MAX_CONCURRENT_REQUESTS, SCORING_TIMEOUT_MS.

Records are NamedTuples: the server does not enter this module in ``sys.modules``, which dataclasses would need.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

FIELDS = ("messages", "prompt", "max_new_tokens", "temperature", "top_p", "seed", "reasoning_effort", "stop")
SETTINGS = ("FTKIT_MAX_NEW_TOKENS", "FTKIT_MAX_INPUT_TOKENS", "FTKIT_MAX_CONCURRENT_REQUESTS", "SCORING_TIMEOUT_MS")
ROLES = ("system", "developer", "user", "assistant")
EFFORTS = ("low", "medium", "high")
EXAMPLE = '{"messages": [{"role": "user", "content": "…"}], "max_new_tokens": 500}'
SPECIAL_TOKEN = re.compile(r"<\|[a-z_0-9]+\|>")
LONGEST_TOKEN = 128
"""Characters of o200k_harmony's longest token: a text that must be too long is refused before it is tokenized."""

PINNED_CLOCK = "{%- macro strftime_now(format) -%}{{ current_date }}{%- endmacro -%}\n"
"""Put before a chat template, shadows its clock: transformers 5.23 turns a function that is passed to it into text."""


class ModelError(Exception):
    """The model cannot be served; the message is one line for the log."""


class Refused(Exception):
    """A request that gets a 4xx: what is wrong and what to send, in which field of it, and the HTTP status."""

    def __init__(self, message: str, field: str = "", status: int = 400):
        super().__init__(message)
        self.message, self.field, self.status = message, field, status


class Limits(NamedTuple):
    """What one process takes on: tokens of a request, requests at a time, milliseconds of a request."""

    max_new_tokens: int = 4096
    max_input_tokens: int = 8192
    concurrent_requests: int = 4
    timeout_ms: int = 180_000

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Limits:
        for name in SETTINGS:
            if not re.fullmatch(r"[1-9]\d{0,11}", environment.get(name, "1")):
                raise ModelError(f"{name}={environment[name]!r} in the environment; it takes a positive whole number")
        return cls(*(int(environment.get(name, usual)) for name, usual in zip(SETTINGS, cls(), strict=True)))


class TrainedWith(NamedTuple):
    """What the training put around a question, from ``ftkit.json`` beside the weights; a raw prompt gets the same."""

    system: str = ""
    reasoning_effort: str = "medium"
    current_date: str = ""  # YYYY-MM-DD; today if empty

    @classmethod
    def read(cls, folder: Path) -> TrainedWith:
        try:
            found = json.loads((folder / "ftkit.json").read_text(encoding="utf-8"))
            return cls(**{field: found[field] for field in cls._fields if found.get(field)})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{folder / 'ftkit.json'} cannot be read: {error}") from error


class Request(NamedTuple):
    """A request that has passed every check that needs no tokenizer."""

    messages: list[dict[str, str]]
    max_new_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    reasoning_effort: str = "medium"
    stop: tuple[str, ...] = ()
    given: str = "messages"  # or prompt: the field that the chat came in


def parse_request(raw: str | bytes, limits: Limits, trained: TrainedWith) -> Request:
    """Check a request's body field by field; null counts as not given.

    Raises:
        Refused: with the first thing that is wrong, its field, and what to send instead.
    """
    body = _json_object(raw)
    if unknown := next((name for name in body if name not in FIELDS), None):
        near = difflib.get_close_matches(unknown[:64], FIELDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(FIELDS)}"
        raise Refused(f"unknown field {_shown(unknown)}; {hint}", unknown[:64])
    body = {name: value for name, value in body.items() if value is not None}
    effort = body.get("reasoning_effort", trained.reasoning_effort)
    if effort not in EFFORTS:
        raise Refused(f"reasoning_effort is {_shown(effort)}; send one of {', '.join(EFFORTS)}", "reasoning_effort")
    longest = limits.max_new_tokens
    return Request(
        messages=_messages(body, limits, trained),
        max_new_tokens=_number(body, "max_new_tokens", min(512, longest), 1, longest, whole=True),
        temperature=_number(body, "temperature", 0.0, 0, 2),
        top_p=_number(body, "top_p", 1.0, 0, 1),
        seed=_number(body, "seed", None, 0, 2**63 - 1, whole=True),
        reasoning_effort=effort,
        stop=_stop(body.get("stop", [])),
        given="prompt" if "prompt" in body else "messages",
    )


def _json_object(raw: str | bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for name, value in pairs:
            if name in built:
                raise Refused(f"{_shown(name)} is given twice", name[:64])
            built[name] = value
        return built

    try:
        body = json.loads(raw, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON ({error}); send {EXAMPLE}") from error
    if not isinstance(body, dict):
        raise Refused(f"the body is {_shown(body)}, not an object; send {EXAMPLE}")
    return body


def _messages(body: Mapping[str, Any], limits: Limits, trained: TrainedWith) -> list[dict[str, str]]:
    """The chat: ``messages`` as they are, or ``prompt`` behind the training's system message."""
    given = [name for name in ("prompt", "messages") if name in body]
    if len(given) != 1:
        said = "prompt and messages are both" if given else "neither prompt nor messages is"
        raise Refused(f"{said} given; send one of them, as in {EXAMPLE}", "messages")
    if given == ["prompt"]:
        system = [{"role": "system", "content": trained.system}] if trained.system else []
        messages = [*system, {"role": "user", "content": _text(body["prompt"], "prompt")}]
    else:
        messages = _chat(body["messages"])
    if sum(len(message["content"]) for message in messages) > limits.max_input_tokens * LONGEST_TOKEN:
        raise Refused(f"{given[0]} is too long: at most {limits.max_input_tokens} tokens are taken", given[0])
    return messages


def _chat(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise Refused(f"messages is {_shown(messages)}; send a list of messages, as in {EXAMPLE}", "messages")
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise Refused(f'{at} is {_shown(message)}; send {{"role": "user", "content": "…"}} and no other field', at)
        role = message["role"]
        if role not in ROLES:
            raise Refused(f"{at}.role is {_shown(role)}; send one of {', '.join(ROLES)}", f"{at}.role")
        if i and role in ("system", "developer"):
            raise Refused(
                f"{at}.role is {role}: only the first message may be, a later one would be lost", f"{at}.role"
            )
        _text(message["content"], f"{at}.content")
    last = messages[-1]["role"]
    if last != "user":
        field = f"messages[{len(messages) - 1}].role"
        raise Refused(f"the last message is from {last}; the one to be answered comes from user", field)
    return messages


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Refused(f"{field} is {_shown(value)}; send text", field)
    if found := SPECIAL_TOKEN.search(value):
        raise Refused(f"{field} holds the special token {found.group()}, which would forge a message", field)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise Refused(f"{field} holds half a surrogate pair, which is no text", field)
    return value


def _number(body: Mapping[str, Any], field: str, usual: Any, low: int, high: int, *, whole: bool = False) -> Any:
    value = body.get(field, usual)
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if field in body and not (number and low <= value <= high):  # NaN is in no range
        raise Refused(f"{field} is {_shown(value)}; send a {'whole ' * whole}number from {low} to {high}", field)
    return value


def _stop(stop: Any) -> tuple[str, ...]:
    if not isinstance(stop, list) or len(stop) > 8 or not all(isinstance(text, str) and text for text in stop):
        raise Refused(f"stop is {_shown(stop)}; send a list of at most 8 texts", "stop")
    return tuple(stop)


def _shown(value: Any) -> str:
    """A value for an error message, cut to a sensible length."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 48 else f"{text[:45]}…"


class Completion(NamedTuple):
    """What a model generated, taken apart.

    Attributes:
        thinking: text of the analysis channel.
        output: text of the final channel; empty if that never came.
        ended: the model ended by itself, by a stop token.
        well_formed: Harmony from beginning to end: closed analyses or commentaries, one final part, ``<|return|>``.
    """

    thinking: str
    output: str
    ended: bool
    well_formed: bool


class Harmony:
    """Takes generated token ids apart into channels, with the special tokens found by name in the tokenizer.

    Args:
        tokenizer: of transformers.

    Raises:
        ModelError: it lacks Harmony's tokens.
    """

    STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")
    """What ends an answer. Never ``<|end|>``: that ends the analysis, and the answer proper is still to come."""

    def __init__(self, tokenizer: Any):
        names = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", *self.STOPS)
        ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
        if lacking := [name for name, number in ids.items() if number in (None, tokenizer.unk_token_id)]:
            raise ModelError(f"the tokenizer has no {lacking[0]}: this is not a gpt-oss")
        self.stop_ids: list[int] = [ids[name] for name in self.STOPS]
        self._tokenizer = tokenizer
        self._names = {number: name.strip("<|>") for name, number in ids.items()}

    def parse(self, ids: Sequence[int]) -> Completion:
        """Take apart what was generated after ``<|start|>assistant``; never raises, whatever the tokens.

        Args:
            ids: generated token ids without the prompt; what follows a stop token, padding for instance, is ignored.
        """
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        parts = list(self._parts(ids if end is None else ids[: end + 1]))
        texts: dict[str, list[str]] = {"analysis": [], "final": []}
        channel = ""
        for name, text in parts:
            if name == "channel":
                channel = next(iter(text.split()), "")
            elif name == "message" and channel in texts:
                texts[channel].append(text)
            elif name in ("start", "end"):
                channel = ""
        shape = "".join(f"<{name}>" + ("" if name == "message" else text.replace("<", "?")) for name, text in parts)
        earlier = "<channel>(analysis|commentary)( [^<]*)?(<constrain>[^<]*)?<message><end><start>assistant"
        well_formed = re.fullmatch(rf"<>({earlier})*<channel>final<message><return>", shape) is not None
        return Completion("\n\n".join(texts["analysis"]), "\n\n".join(texts["final"]), end is not None, well_formed)

    def _parts(self, ids: Sequence[int]) -> Iterator[tuple[str, str]]:
        """Each special token's name with the text up to the next one; first an empty name with the text before any."""
        name, plain = "", []
        for token in ids:
            if token in self._names:
                yield name, self._decode(plain)
                name, plain = self._names[token], []
            else:
                plain.append(token)
        yield name, self._decode(plain).rstrip("\ufffd")  # a character that was cut off half-way

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


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
    """A loaded model that answers one request at a time.

    Raises:
        ModelError: it cannot be loaded whole, or is not a gpt-oss.
    """

    def __init__(self, folder: Path, limits: Limits):
        from transformers import AutoTokenizer, GenerationConfig

        check_weights(folder)
        self.limits, self.trained = limits, TrainedWith.read(folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not self.tokenizer.chat_template:
            raise ModelError(f"{folder} holds no chat template")
        self.harmony = Harmony(self.tokenizer)
        self.model = _load_model(folder)
        self.context: int = self.model.config.max_position_embeddings
        stops = self.harmony.stop_ids
        # replaces the checkpoint's own, which would fill in what generate is not told: stops, sampling
        self.model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=stops[-1])
        self.slots, self.turn = threading.BoundedSemaphore(limits.concurrent_requests), threading.Lock()
        self.prompt_ids(Request([{"role": "user", "content": "…"}]))

    def answer(self, raw: str | bytes) -> dict[str, Any]:
        """The answer to a request's body.

        Raises:
            Refused: the request is bad, or too many are waiting.
        """
        deadline = time.monotonic() + 0.95 * self.limits.timeout_ms / 1000
        request = parse_request(raw, self.limits, self.trained)
        ids = self.prompt_ids(request)
        with self._turn(deadline):
            generated = self.generate(request, ids, deadline - time.monotonic())
        return describe(self.harmony.parse(generated), request, len(ids), len(generated))

    @contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        if not self.slots.acquire(blocking=False):
            raise Refused(f"{self.limits.concurrent_requests} requests are being answered; try again later", status=429)
        try:
            if not self.turn.acquire(timeout=max(0, deadline - time.monotonic())):
                raise Refused("earlier requests took all the time of this one; try again later", status=429)
            try:
                yield
            finally:
                self.turn.release()
        finally:
            self.slots.release()

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

    def generate(self, request: Request, ids: Sequence[int], seconds: float) -> list[int]:
        """Generated token ids, the stop token included."""
        import torch

        def stop_text(input_ids: Any, _scores: Any, **_: Any) -> Any:
            output = self.harmony.parse(input_ids[0, len(ids) :].tolist()).output
            return torch.tensor([_first(output, request.stop) is not None], device=input_ids.device)

        _ = torch.seed() if request.seed is None else torch.manual_seed(request.seed)
        sampling = {"temperature": float(request.temperature), "top_p": float(request.top_p), "top_k": 0}
        prompt = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            whole = self.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=request.max_new_tokens,
                max_time=seconds,
                stopping_criteria=[stop_text] if request.stop else None,
                do_sample=request.temperature >= 1e-3,  # a lower one overflows to greedy's limit, or to NaN
                **(sampling if request.temperature >= 1e-3 else {}),
            )
        return whole[0, len(ids) :].tolist()


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
    options: dict[str, Any] = {"dtype": torch.bfloat16 if cuda else "auto", "device_map": "auto" if cuda else None}
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


_served: Any = None


def init() -> None:
    """Load the model below ``AZUREML_MODEL_DIR``; called once, before any request."""
    global _served
    if not (root := os.environ.get("AZUREML_MODEL_DIR")):
        raise ModelError("AZUREML_MODEL_DIR is not set: it names the folder that holds the model's folder")
    began, limits, folder = time.monotonic(), Limits.from_environment(os.environ), find_model(Path(root))
    _served = Served(folder, limits)
    where, dtype = _served.model.device, str(_served.model.dtype).removeprefix("torch.")
    print(f"serving {folder} on {where} in {dtype}, loaded in {time.monotonic() - began:.1f} s; {limits}")


def run(raw: str) -> Any:
    """Answer one request's body: a dict, or a 4xx as a response of the server's."""
    from azureml_inference_server_http.api.aml_response import AMLResponse

    try:
        return _served.answer(raw)
    except Refused as error:
        body = {"error": {"message": error.message, "field": error.field}}
        return AMLResponse(body, error.status, {"Retry-After": "5"} if error.status == 429 else {}, json_str=True)
