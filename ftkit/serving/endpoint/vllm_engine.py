"""Jobs answered by vLLM: token ids go there and token ids come back, so prompt and contract are those of score.py.

vLLM's own chat completions would write another prompt: its Harmony has today's date and drops the training's.
"""

from __future__ import annotations

import http.client
import json
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ftkit.chat.messages import ModelError
from ftkit.serving.endpoint import adapter_effect
from ftkit.serving.endpoint.adapter_effect import Effect
from ftkit.serving.endpoint.adapters import Adapters
from ftkit.serving.endpoint.batching import Job
from ftkit.serving.endpoint.board import Board, OwnPlaces, Places, folder_of, own_master
from ftkit.serving.endpoint.engine import Busy, Restarting, Start
from ftkit.serving.endpoint.refusals import STARTING, Refused
from ftkit.serving.endpoint.sampling import SETTINGS, Chosen
from ftkit.serving.endpoint.shared_vllm import SharedVllm
from ftkit.serving.endpoint.vllm_server import HOST, VllmServer, find_vllm, has_gpu

PASSED_ON = (
    *SETTINGS,
    *("min_tokens", "ignore_eos", "stop_token_ids", "bad_words", "response_format", "structured_outputs"),
)
"""Fields of OpenAI's format, and of vLLM's, that it is given as they are."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Highest ranks that vLLM can be started for (0.26)."""

AT_ONCE = 1024
"""Tokens of the longest answer that vLLM hands over whole where nobody reads it piece by piece: each piece is work for
its server and for this process. A longer answer comes in pieces, so that there is something to give when time is over.
"""

log = logging.getLogger("azmlinfsrv.print")


class VllmEngine:
    """See ``Engine``. The probe is asked once, to see what this vLLM can; ``notes`` say how the adapters came out.

    Raises:
        ModelError: vLLM does not start, gives no token ids, or applies an adapter otherwise than it was trained.
    """

    passed_on: Sequence[str] = PASSED_ON
    model: Any = None
    where = "vLLM"

    def __init__(self, start: Start):
        capacity = start.limits.concurrent_requests
        self.adapters = adapters = Adapters(start.folder, start.names)
        self._name = adapters.base
        self._pool = ThreadPoolExecutor(capacity, thread_name_prefix="job")
        own = ["--served-model-name", self._name, "--max-num-seqs", str(capacity), "--generation-config", "vllm"]
        own += lora_arguments(adapters.folders)
        arguments = [str(start.folder), *own, "--disable-uvicorn-access-log", *start.arguments]
        self._places: OwnPlaces | Places
        self._server: VllmServer | SharedVllm
        if start.fronts > 1:
            master = own_master()
            board = Board(folder_of(master))
            self._places = Places(board, capacity, start.fronts)
            self._server = SharedVllm(arguments, board, master)
        else:
            self._places, self._server = OwnPlaces(capacity), VllmServer(arguments)
        try:
            stop_ids, probe = start.read_words()
        except BaseException:
            self._server.leave()
            raise
        self._stop_ids = frozenset(stop_ids)
        self._server.wait()
        self.notes: Sequence[str] = self._tried(probe) if self._server.is_untried else ()
        self._server.let_in()
        self._places.is_here()

    def _tried(self, probe: Sequence[int]) -> list[str]:
        """What comes out as vLLM is asked for the first time; ends it if that is not as it should be."""
        job = Job(probe, 1, time.monotonic() + 600)
        self.submit(job)
        try:
            if not list(job.tokens()):
                raise ModelError(f"vLLM answers no prompt of token ids: {job.refusal or 'its log says why'}")
            return [f"adapter {name}: {self._compared(name, path)}" for name, path in self.adapters.folders.items()]
        except ModelError as error:
            self._server.stop(str(error))
            raise

    @classmethod
    def suits(cls) -> bool:
        """Where it is installed and there is a GPU."""
        return find_vllm() is not None and has_gpu()

    def context(self) -> int | None:
        """What vLLM was started with."""
        connection = http.client.HTTPConnection(HOST, self._server.port, timeout=60)
        try:
            connection.request("GET", "/v1/models")
            return json.loads(connection.getresponse().read())["data"][0].get("max_model_len")
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            log.warning("vLLM does not tell its longest context: %s", error)
            return None
        finally:
            connection.close()

    @property
    def in_hand(self) -> int:
        return self._places.in_hand

    @property
    def is_ready(self) -> bool:
        """Whether vLLM answers, which it does not while it is being started again, and all processes that ask it."""
        return self._server.is_ready and self._places.were_complete

    def reserve(self) -> None:
        if not self._server.is_ready:
            raise Restarting
        if not self._places.take():
            raise Busy

    def release(self) -> None:
        self._places.give()

    def submit(self, job: Job, *, reserved: bool = False) -> None:
        if not reserved:
            self.reserve()
        job.released = self.release
        self._pool.submit(self._run, job)

    def stop(self) -> None:
        """End vLLM."""
        self._server.stop("it was stopped")

    def _compared(self, name: str, folder: Path) -> str:
        """How it comes out that an adapter's effect here is held against the one that its training has left."""
        if not (folder / adapter_effect.FILE).is_file():
            return f"not held against its training, which has left no {adapter_effect.FILE} beside it"
        effect = Effect.read(folder / adapter_effect.FILE)
        try:
            base, adapted = ([self._logprobs(model, row) for row in effect.rows] for model in (self._name, name))
            return effect.compare(base, adapted)
        except ModelError as error:
            raise ModelError(f"adapter {name}: {error}") from error

    def _logprobs(self, model: str, ids: Sequence[int]) -> list[float]:
        """What vLLM computes for each token but the first, in nats.

        Raises:
            ModelError: it does not tell.
        """
        asked = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        connection = http.client.HTTPConnection(HOST, self._server.port, timeout=600)
        try:
            connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise ModelError(f"vLLM gives no log-probabilities: {_refusal(answer.status, content).message}")
            found = json.loads(content)["choices"][0]["prompt_logprobs"]
            pairs = zip(ids[1:], found[1:], strict=True)
            return [float(likely[str(token)]["logprob"]) for token, likely in pairs]
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise ModelError(f"vLLM gives no log-probabilities: {error}") from error
        finally:
            connection.close()

    def _run(self, job: Job) -> None:
        connection = http.client.HTTPConnection(HOST, self._server.port)
        answer: http.client.HTTPResponse | None = None
        try:
            connection.timeout = max(0.1, job.deadline - time.monotonic())
            connection.request("POST", "/v1/completions", self._body(job), {"Content-Type": "application/json"})
            sock = connection.sock
            job.on_cancel = lambda: _shut(sock)
            answer = connection.getresponse()
            if answer.status != 200:
                job.refusal = _refusal(answer.status, answer.read(65_536))
            elif _in_pieces(job):
                self._read(answer, job)
            else:
                self._take(json.loads(answer.read()), job)
        except TimeoutError:
            job.deadline = 0
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            if job.still_running():
                # a vLLM that has just ended resets what it was to answer, and has said nothing of it
                if answer is None:
                    job.refusal = Refused(STARTING, "", 503)
                log.error("vLLM broke off an answer: %s", error)
        finally:
            connection.close()
            if job.still_running():
                job.end("failed")

    def _body(self, job: Job) -> bytes:
        asked: dict[str, Any] = {
            "model": job.adapter or self._name,
            "prompt": list(job.prompt),
            "max_tokens": job.max_new_tokens,
            "temperature": job.temperature,
            "top_p": job.top_p or 1e-6,  # 0 takes the likeliest token here, and is refused there
            "seed": job.seed,
            "stream": _in_pieces(job),
            "return_token_ids": True,
            "skip_special_tokens": False,
            **job.more,
        }
        if job.likeliest is not None:
            asked |= {"logprobs": job.likeliest, "return_tokens_as_token_ids": True}
        return json.dumps(asked).encode()

    def _read(self, answer: http.client.HTTPResponse, job: Job) -> None:
        """Hand the job its tokens as they come."""
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                job.refusal = _refusal(int(event["error"].get("code") or 500), line[6:])
                return
            self._take(event, job)
            if not job.still_running():
                return

    def _take(self, event: Mapping[str, Any], job: Job) -> None:
        """Hand it the tokens of a piece, or of all there are."""
        for choice in event["choices"]:
            tokens = choice.get("token_ids")
            if tokens is None and choice.get("text"):
                job.refusal = Refused("it gives no token_ids, as releases before 0.11 do not", "", 500)
                job.end("failed")
                return
            for token, chosen in zip(tokens or (), _chosen(choice, tokens or (), job.likeliest), strict=True):
                if not job.ended:
                    job.add(token, self._stop_ids, chosen)
            if (finished := choice.get("finish_reason")) and not job.ended:
                job.end("length" if finished == "length" else "stop")


def _in_pieces(job: Job) -> bool:
    """Whether vLLM is to hand the answer over as it comes."""
    return job.stepwise or job.max_new_tokens > AT_ONCE


def lora_arguments(folders: Mapping[str, Path]) -> list[str]:
    """Arguments of ``vllm serve`` for adapters by name.

    Raises:
        ModelError: one cannot be read, or has a rank that vLLM does not take.
    """
    if not folders:
        return []
    ranks = {name: _rank(folder / "adapter_config.json") for name, folder in folders.items()}
    highest = max(ranks, key=lambda name: ranks[name])
    room = next((rank for rank in RANKS if rank >= ranks[highest]), None)
    if room is None:
        what = f"adapter {highest} has rank {ranks[highest]}, and vLLM takes {RANKS[-1]} at most"
        raise ModelError(f"{what}; deployment.engine=transformers takes any")
    modules = [json.dumps({"name": name, "path": str(folder)}) for name, folder in folders.items()]
    return [
        *("--enable-lora", "--max-loras", str(len(folders)), "--max-lora-rank", str(room), "--lora-modules", *modules)
    ]


def _rank(path: Path) -> int:
    """The highest rank in an adapter."""
    try:
        config = json.loads(path.read_bytes())
        return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} gives no rank: {error}") from error


def _chosen(choice: dict[str, Any], tokens: Sequence[int], likeliest: int | None) -> Sequence[Chosen | None]:
    """How likely each token was; vLLM lists the chosen one beside the likeliest, which may have it or not."""
    if likeliest is None:
        return [None] * len(tokens)
    given = choice["logprobs"]
    found = []
    for token, logprob, others in zip(tokens, given["token_logprobs"], given["top_logprobs"], strict=True):
        pairs = [(int(name.removeprefix("token_id:")), float(value)) for name, value in (others or {}).items()]
        pairs.sort(key=lambda pair: -pair[1])
        found.append(Chosen(token, logprob, pairs[:likeliest]))
    return found


def _shut(connection: socket.socket | None) -> None:
    """Wake the thread that reads, and have vLLM give the request up."""
    if connection:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _refusal(status: int, content: bytes) -> Refused:
    """vLLM's refusal in our words: what it says of a request is the client's, anything else the endpoint's."""
    try:
        error = json.loads(content)
        said = str(error.get("error", error).get("message"))[:300]
    except (ValueError, AttributeError):
        said = content.decode(errors="replace")[:300]
    client = 400 <= status < 500
    return Refused(said if client else f"vLLM failed: {said}", "", status if client else 500)


ENGINE = VllmEngine
