"""A request's messages as the model's chat template takes them.

System messages are joined to one in front, an earlier answer's thinking is left out, as in training, and that of calls
of tools is kept. A tool's result has the name of the function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ftkit.serving.endpoint.bodies import EXAMPLE
from ftkit.serving.endpoint.refusals import VLLM_TAKES_IT, Refused, hint, shown

Turn = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM = ("system", "developer")
MESSAGE = ("role", "content", "name")
OF_AN_ANSWER = ("tool_calls", "refusal")
LEFT_OUT = (
    *("thinking", "reasoning", "reasoning_content", "reasoning_details", "thinking_blocks", "annotations"),
    *("provider_specific_fields", "images", "id"),
)
"""Of an earlier answer: what a server or a client puts beside its text, and no prompt has."""
THINKING = ("thinking", "reasoning_content", "reasoning")
"""Where servers put the thinking before a call; the first that is there is taken."""
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class Texts:
    """Checks each text that goes into a prompt, and how long they all are.

    Args:
        special: finds the vocabulary's special tokens.
        characters: of all texts together, at most.
    """

    def __init__(self, special: re.Pattern[str], characters: int):
        self._special, self._room, self._most = special, characters, characters

    def take(self, text: Any, field: str, *, may_be_blank: bool = False) -> str:
        """The text as it is.

        Raises:
            Refused: it is none, or blank, or holds a special token, or is too long beside those before it.
        """
        if not isinstance(text, str) or not (may_be_blank or text.strip()):
            raise Refused(f"{field} is {shown(text)}; send text", field)
        self._room -= len(text)
        if self._room < 0:
            what = field.partition("[")[0]
            raise Refused(
                f"{what} is too long: at most {self._most:,} characters are taken", what, code="context_length_exceeded"
            )
        if found := self._special.search(text):
            raise Refused(f"{field} holds the special token {found.group()}, which would forge a message", field)
        return text


def read_chat(messages: Any, texts: Texts, limit: int) -> list[Turn]:
    """The messages, checked and in the template's order.

    Args:
        limit: messages at most.

    Raises:
        Refused: with the first that is wrong.
    """
    if not isinstance(messages, list) or not messages:
        raise Refused(f"messages is {shown(messages)}; send a list of messages, as in {EXAMPLE}", "messages")
    if len(messages) > limit:
        said = f"there are {len(messages):,} messages; at most {limit:,} are taken"
        raise Refused(said, "messages", code="context_length_exceeded")
    turns = [_turn(message, f"messages[{i}]", texts) for i, message in enumerate(messages)]
    system = [turn["content"] for turn in turns if turn["role"] in SYSTEM and turn["content"].strip()]
    others = [turn for turn in turns if turn["role"] not in SYSTEM]
    if not others or others[-1]["role"] == "assistant":
        field, last = f"messages[{len(messages) - 1}].role", turns[-1]["role"]
        raise Refused(f"the last message is from {last}; the one to be answered comes from user", field)
    first = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    return [*first, *_named_results(others)]


def _turn(message: Any, at: str, texts: Texts) -> Turn:
    if not isinstance(message, dict):
        raise Refused(f'{at} is {shown(message)}; send {{"role": "user", "content": "…"}}', at)
    given = {name: value for name, value in message.items() if value is not None}
    role = given.get("role")
    if role == "function":
        raise Refused(
            f'{at}.role is "function", which tools have replaced; send "tool" with its tool_call_id', f"{at}.role"
        )
    if role not in ROLES:
        raise Refused(f"{at}.role is {shown(role)}; send one of {', '.join(ROLES)}", f"{at}.role")
    known = MESSAGE
    if role == "assistant":
        known += (*OF_AN_ANSWER, *LEFT_OUT)
    elif role == "tool":
        known += ("tool_call_id",)
    for name, value in given.items():
        if name not in known and value not in ([], {}, ""):
            listed = (*MESSAGE, *(OF_AN_ANSWER if role == "assistant" else known[len(MESSAGE) :]))
            field = f"{at}.{name[:64]}"
            raise Refused(f"{field}: unknown field of a message from {role}; {hint(name, known, listed)}", field)
    content = _content(given.get("content"), f"{at}.content", texts, may_be_blank=role != "user")
    if role == "tool":
        asked = given.get("tool_call_id")
        if not isinstance(asked, str):
            raise Refused(f"{at}.tool_call_id is {shown(asked)}; send the id of the call", f"{at}.tool_call_id")
        return {"role": role, "content": content, "tool_call_id": asked, "at": at}
    turn: Turn = {"role": role, "content": content}
    if role == "assistant":
        if not content and "refusal" in given:
            turn["content"] = texts.take(given["refusal"], f"{at}.refusal", may_be_blank=True)
        if calls := _calls(given.get("tool_calls") or [], at, texts):
            turn["tool_calls"] = calls
            field = next((name for name in THINKING if isinstance(given.get(name), str)), "")
            if thinking := texts.take(given.get(field, ""), f"{at}.{field}", may_be_blank=True):
                turn["thinking"] = thinking
    return turn


def _content(content: Any, field: str, texts: Texts, *, may_be_blank: bool) -> str:
    """A message's text, which may come in parts."""
    if content is None and may_be_blank:
        return ""
    if isinstance(content, list):
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            key = "refusal" if kind == "refusal" else "text"
            if kind not in ("text", "input_text", "output_text", "refusal") or not isinstance(part.get(key), str):
                raise Refused(f'{field}[{i}] is {shown(part)}; send text, as in {{"type": "text", "text": "…"}}', field)
        content = "".join(part.get("text", part.get("refusal", "")) for part in content)
    return texts.take(content, field, may_be_blank=may_be_blank)


def _calls(calls: Any, at: str, texts: Texts) -> list[dict[str, Any]]:
    """Calls as OpenAI writes them, the arguments as text."""
    if not isinstance(calls, list):
        raise Refused(f"{at}.tool_calls is {shown(calls)}; send a list", f"{at}.tool_calls")
    read = []
    for i, call in enumerate(calls):
        field = f"{at}.tool_calls[{i}]"
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            said = 'send {"id": "…", "type": "function", "function": {"name": "…", "arguments": "{}"}}'
            raise Refused(f"{field} is {shown(call)}; {said}", field)
        arguments = function.get("arguments") or "{}"
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        texts.take(arguments, f"{field}.function.arguments")
        read.append(
            {"id": str(call.get("id") or ""), "type": "function", "function": {"name": name, "arguments": arguments}}
        )
    return read


def _named_results(turns: Sequence[Turn]) -> Iterator[Turn]:
    """Each tool's result with the name of the function that was called.

    Raises:
        Refused: a result answers no call of the last message with calls.
    """
    names: dict[str, str] = {}
    for turn in turns:
        if turn["role"] != "tool":
            names = {call["id"]: call["function"]["name"] for call in turn.get("tool_calls", ())}
            yield turn
            continue
        asked = turn["tool_call_id"]
        if asked not in names:
            known = ", ".join(names) or "there is none"
            field = f"{turn['at']}.tool_call_id"
            raise Refused(f"{field} is {shown(asked)}, the id of no call of the message before it ({known})", field)
        yield {"role": "tool", "content": turn["content"], "tool_call_id": asked, "name": names[asked]}


def read_tools(tools: Any, choice: Any, texts: Texts) -> list[dict[str, Any]]:
    """The tools for the template: functions with name, description and parameters; none if ``choice`` is none.

    Raises:
        Refused: one is no function, or the choice forces a call.
    """
    if choice not in (None, "none", "auto"):
        said = f'tool_choice is {shown(choice)}; this server takes "auto" and "none"; {VLLM_TAKES_IT}'
        raise Refused(said, "tool_choice", code="unsupported_value")
    if not isinstance(tools, list) or len(tools) > 128:
        raise Refused(f"tools is {shown(tools)}; send a list of at most 128 functions", "tools")
    read = []
    for i, tool in enumerate(tools):
        at, function = f"tools[{i}]", tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            said = 'send {"type": "function", "function": {"name": "…", "description": "…", "parameters": {…}}}'
            raise Refused(f"{at} is {shown(tool)}; {said}", at)
        parameters = function.get("parameters")
        if not isinstance(parameters, dict | None):
            field = f"{at}.function.parameters"
            raise Refused(f"{field} is {shown(parameters)}; send a JSON schema of an object", field)
        if parameters and "properties" in parameters:
            parameters = {"type": "object"} | parameters
        texts.take(json.dumps(function, ensure_ascii=False), at)
        described = texts.take(function.get("description") or "", f"{at}.function.description", may_be_blank=True)
        read.append(
            {"type": "function", "function": {"name": name, "description": described, "parameters": parameters}}
        )
    return [] if choice == "none" else read
