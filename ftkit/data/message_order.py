"""The messages of a row in order: channels joined, calls with their results, and what carries loss."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby, pairwise
from typing import Any

from ftkit.chat.messages import Message, calls_of
from ftkit.config.dataset import Dataset
from ftkit.data.refused import Refused
from ftkit.data.turns import CALL_ID

SEPARATED = "calls of one message were written one after another, each with its result behind it"
NO_THINKING = "tool calls without thinking are trained without"
_NOT_PLAIN = {"channel", "tool_calls"}
JOIN = "dataset.turns.consecutive=join writes them as one"


def in_order(messages: list[Message], dataset: Dataset, remarks: set[str]) -> list[Message]:
    """Take out what says nothing, join what belongs together, and check whose turn it is.

    Args:
        messages: without the system message.
        remarks: what is to be said of the row.

    Raises:
        Refused: they are no chat that ends with an answer or a call.
    """
    plain = all(message["role"] != "tool" and not message.keys() & _NOT_PLAIN for message in messages)
    messages = _joined(messages if plain else _one_a_turn(_channels(messages)), dataset)
    if not plain:
        messages = _with_results(messages, remarks)
    _check_order(messages)
    for message in messages[: next((i for i, m in enumerate(messages) if m["role"] == "user"), 0)]:
        if message["role"] == "assistant":  # a greeting answers nothing
            message["train"] = False
    if dataset.loss == "last":
        _keep_out(messages[: max((i for i, m in enumerate(messages) if m["role"] == "user"), default=0)])
    return messages


def as_context(messages: list[Message]) -> list[Message]:
    """A prompt's messages, of which none is trained."""
    _keep_out(messages)
    return messages


def check_thinking(messages: list[Message], dataset: Dataset, remarks: set[str]) -> None:
    """Each answer that is trained has thinking where that is required; empty thinking is none.

    Raises:
        Refused: an answer has none, or nothing is trained.
    """
    tag = dataset.thinking_tag
    trained = [m for m in messages if m["role"] == "assistant" and m.get("train", True)]
    if not trained:
        raise Refused("no answer of the row is to be trained")
    for message in trained:
        if dataset.thinking == "required" and not message.get("thinking"):
            if calls_of(message):
                remarks.add(NO_THINKING)
                continue
            cure = (
                "dataset.thinking=optional trains such an answer without, dataset.columns.thinking=… names its column"
            )
            what = "the <{}> block is empty" if "thinking" in message else "the answer has no <{}> block"
            raise Refused(what.format(tag), cure=cure)
    for message in messages:
        if message.get("thinking") == "":
            del message["thinking"]


def _keep_out(messages: Iterable[Message]) -> None:
    for message in messages:
        if message["role"] == "assistant":
            message["train"] = False


def _channels(messages: list[Message]) -> list[Message]:
    """Messages on Harmony's channels: an analysis becomes the thinking of what the assistant says next."""
    joined: list[Message] = []
    analysis: list[str] = []
    for message in messages:
        channel = message.pop("channel", None)
        if channel == "analysis":
            if "thinking" in message or message["role"] != "assistant":
                raise Refused("a message on the channel analysis has thinking of its own")
            analysis.append(message["content"])
            continue
        if analysis:
            if message["role"] != "assistant":
                raise Refused("no answer or call follows a message on the channel analysis")
            if "thinking" in message:
                raise Refused("the thinking stands on the channel analysis and in a field of its own too")
            message["thinking"] = "\n\n".join(analysis)
            analysis = []
        joined.append(message | ({"before_call": True} if channel == "commentary" else {}))
    if analysis:
        raise Refused("the chat ends without an answer", "after a message on the channel analysis")
    return joined


def _one_a_turn(messages: list[Message]) -> list[Message]:
    """What the assistant says directly before a call, without thinking of the call's own, is one turn with it."""
    turns: list[Message] = []
    for message in messages:
        last = turns[-1] if turns else None
        if (
            last is not None
            and calls_of(message)
            and last["role"] == "assistant"
            and not calls_of(last)
            and not message["content"]
            and not ("thinking" in message and "thinking" in last)
        ):
            last.pop("before_call", None)
            turns[-1] = last | {key: value for key, value in message.items() if key != "content"}
            continue
        turns.append(message)
    for message in turns:
        if message.pop("before_call", False):
            raise Refused("no call follows a message on the channel commentary")
    return turns


def _joined(messages: list[Message], dataset: Dataset) -> list[Message]:
    """Two messages of one role in a row, joined by a blank line if that is asked for."""
    if all(message["role"] != after["role"] for message, after in pairwise(messages)):
        return messages
    joined: list[Message] = []
    for role, group in groupby(messages, key=lambda message: message["role"]):
        several = list(group)
        if role == "tool" or len(several) == 1 or any(map(calls_of, several[:-1])):
            joined += several
        elif dataset.turns.consecutive == "refuse":
            due = {"user": "assistant", "assistant": "user"}.get(role)
            what = f"{role} speaks where it is the {due}'s turn" if due else f"{role} speaks in the middle"
            raise Refused("the roles are in the wrong order", what, JOIN)
        else:
            joined.append(_as_one(several))
    return joined


def _as_one(several: list[Message]) -> Message:
    whole: Message = {"role": several[0]["role"]}
    for key in ("thinking", "content"):
        if texts := [message[key] for message in several if message.get(key)]:
            whole[key] = "\n\n".join(texts)
    if len({message.get("train", True) for message in several}) > 1:
        raise Refused("of messages that are joined, one is to be trained and one is not")
    return several[-1] | whole


def _with_results(messages: list[Message], remarks: set[str]) -> list[Message]:
    """Each call with its result behind it: ``<|call|>`` ends a turn, so the result comes before the next call."""
    paired: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        end = at + 1
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        if calls := calls_of(message):
            paired += _paired(message, calls, messages[at + 1 : end], end == len(messages), remarks)
        elif end > at + 1 or message["role"] == "tool":
            raise Refused("a tool's result stands where no call was made")
        else:
            paired.append(message)
        at = end
    return paired


def _paired(
    message: Message, calls: list[dict[str, Any]], results: list[Message], is_last: bool, remarks: set[str]
) -> list[Message]:
    if is_last and not results:
        for call in calls:
            call.pop("id", None)
        return [message]
    if len(results) != len(calls):
        raise Refused("calls and results are not equally many", f"{len(calls)} calls, {len(results)} results")
    if len(calls) > 1:
        remarks.add(SEPARATED)
    turns: list[Message] = []
    left = list(results)
    for i, call in enumerate(calls):
        result = _result_of(call, left)
        left.remove(result)
        name = call["function"]["name"]
        if result.get("name", name).removeprefix("functions.") != name:
            raise Refused("a result is of another function than its call", f"{result['name']} after {name}")
        begun = {"role": "assistant", "content": ""} | ({"train": False} if message.get("train") is False else {})
        turns.append((begun if i else message) | {"tool_calls": [call]})
        turns.append({"role": "tool", "name": name, "content": result["content"]})
    for call in calls:
        call.pop("id", None)
    return turns


def _result_of(call: dict[str, Any], left: list[Message]) -> Message:
    """The result that names the call; the next one where ids are missing."""
    wanted = call.get("id")
    if wanted is None or any(CALL_ID not in result for result in left):
        return left[0]
    for result in left:
        if result[CALL_ID] == wanted:
            return result
    raise Refused("a call has no result with its id", repr(wanted))


def _check_order(messages: list[Message]) -> None:
    """User and assistant take turns; behind a call stands its result; the assistant has the last word.

    Raises:
        Refused: they do not.
    """
    if not messages:
        raise Refused("the chat has no message")
    for before, message in zip([None, *messages], messages, strict=False):
        role, last = message["role"], before and before["role"]
        if role == "system":
            raise Refused("the roles are in the wrong order", "system speaks in the middle of the chat")
        if role == last or (role == "user" and last == "assistant" and before and calls_of(before)):
            due = {"user": "assistant", "assistant": "user"}.get(role, "assistant")
            raise Refused("the roles are in the wrong order", f"{role} speaks where it is the {due}'s turn", JOIN)
    if messages[-1]["role"] != "assistant":
        raise Refused("the chat ends without an answer")
