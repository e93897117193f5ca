"""One message of a chat as people lay it out, to a message of ours; a key with a meaning is used or refused."""

from __future__ import annotations

import json
from typing import Any

from ftkit.chat.messages import Message
from ftkit.config.dataset import Dataset
from ftkit.data.refused import Account, Refused, Texts, is_empty, kind_of, refused
from ftkit.data.thinking import begins_with_other_tags, looks_like_tags, split_thinking, trimmed
from ftkit.data.tool_calls import OTHER_CALLS, as_json, called, hermes_calls

ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")} | {"function": "tool"}
THINKING_KEYS = ("thinking", "reasoning_content", "reasoning")
WEIGHT_KEYS = ("weight", "train", "training", "trainable", "is_trainable", "do_train", "supervise", "loss")
MASK_KEYS = ("mask", "masked", "no_loss", "ignore", "ignored", "deleted", "excluded")
"""Keys that may take a message out of training where they are true: they refuse its row."""
USED_KEYS = ("tool_calls", "function_call", "tool_call_id", "channel", "recipient", "content_type")
"""Keys that have a meaning in any layout, beside role, content, thinking and weight."""
REFUSED_KEYS = (
    *("refusal", "audio", "audios", "image", "images", "image_url", "video", "videos", "files", "attachments"),
    *("prefix", "reasoning_details", "loss_scale", "loss_weight", "tools", "documents"),
)
"""Keys with a meaning that cannot be trained: dropping them would change what is learned."""
TRIMMED = "white space at the end of an answer or its thinking was left out"
BLANK_LINES = "blank lines before an answer or its thinking were left out"
NO_OPENING_TAG = "an answer has </think> without <think>: its thinking begins with the text"
CALL_ID = "tool_call_id"
_CURES_OF_PARTS = {
    "tool_use": "write calls under tool_calls, as OpenAI does",
    "tool_result": "write results as messages of the role tool",
}


def optional(name: str) -> str:
    """The name of a column or key that no row need have: it is given with a ``?`` behind it."""
    return name.removesuffix("?")


class Turns:
    """Reads the messages of one row.

    Args:
        dataset: its settings.
        account: takes down keys that are not used.
        remarks: what is to be said of the row.
    """

    def __init__(self, dataset: Dataset, account: Account, remarks: set[str]):
        self._turns = dataset.turns
        self._tag = dataset.thinking_tag
        self._opening = f"<{self._tag}>".lower()
        self._thinking_keys = tuple(dict.fromkeys((optional(dataset.turns.thinking), *THINKING_KEYS)))
        self._used = {
            *(dataset.turns.role, dataset.turns.content, *self._thinking_keys, *WEIGHT_KEYS, *USED_KEYS, "name")
        }
        self._roles = ROLES | {name.casefold(): role for name, role in dataset.turns.roles.items()}
        self._texts = Texts(dataset, account, remarks)
        self._account = account
        self._remarks = remarks

    def messages(self, given: Any, column: str) -> list[Message]:
        """The messages of a column: a list, its JSON text, or an object of lists (how Arrow may keep a list)."""
        if isinstance(given, str) and given.lstrip()[:1] in ("[", "{"):
            try:
                given = json.loads(given)
            except (ValueError, RecursionError) as error:
                raise Refused(f"{column} is text, but not the JSON of messages", str(error)) from error
        if isinstance(given, dict) and isinstance(given.get(self._turns.role), list):
            given = _by_message(given, column)
        if not isinstance(given, list):
            raise Refused(f"{column} is {kind_of(given)}, not a list of messages")
        return [self.message(message, f"{column}[{i}]") for i, message in enumerate(given)]

    def message(self, given: Any, at: str) -> Message:
        """One message; an assistant's may still have a ``channel``.

        Raises:
            Refused: with the reason.
        """
        if not isinstance(given, dict):
            raise Refused("a message is no object", f"{at} is {kind_of(given)}")
        role = self._role(given, at)
        self._look_at_keys(given, at)
        content = given.get(self._turns.content)
        if role in ("assistant", "call"):
            return self._assistant(given, content, at, is_call=role == "call")
        self._count_keys_of_assistants(given, role)
        if any(not is_empty(given.get(key)) for key in ("tool_calls", "function_call")):
            raise Refused(f"a message of {role} has tool calls", f"in {at}")
        if role == "tool":
            return self._result(given, content, at)
        if role in ("system", "developer") and (is_empty(content) or (isinstance(content, str) and content.isspace())):
            return {"role": "system", "content": ""}
        text = self._texts.text(self._joined(content, at), at)
        return {"role": "user" if role == "user" else "system", "content": text}

    def answer(self, text: Any, thinking: Any, at: str) -> Message:
        """An assistant's message from an answer and the thinking that stands apart from it, if there is any."""
        message: Message = {"role": "assistant"}
        answer = self._texts.text(text, at)
        own = thinking is not None and (not isinstance(thinking, str) or not thinking.isspace()) and thinking != ""
        inside, content = split_thinking(answer, self._tag)
        if own:
            if inside:
                raise Refused(f"the thinking stands in a field of its own and in <{self._tag}> too")
            message["thinking"] = self._trimmed(self._texts.text(thinking, f"thinking of {at}"))
        elif inside is not None:
            message["thinking"] = inside
            if self._opening not in answer and self._opening not in answer.lower():
                self._remarks.add(NO_OPENING_TAG.replace("think>", f"{self._tag}>"))
        elif other := begins_with_other_tags(answer):
            cure = f"dataset.thinking_tag={other}"
            raise Refused(f"the answer thinks in <{other}>, not in <{self._tag}>", f"in {at}", cure)
        if inside is None and (tag := looks_like_tags(answer)):
            self._remarks.add(f"an answer holds {tag}, which is trained as text")
        if call := OTHER_CALLS.match(answer):
            cure = "write calls under tool_calls, as OpenAI does"
            raise Refused("the answer is a tool call in the form of another model", f"{at} begins {call[0]!r}", cure)
        message["content"] = self._trimmed(content)
        if answer != answer.rstrip():
            self._remarks.add(TRIMMED)
        return message

    def _trimmed(self, text: str) -> str:
        """``trimmed``, and what it left out is said."""
        kept = trimmed(text)
        if not text.endswith(kept):
            self._remarks.add(TRIMMED)
        if not text.startswith(kept):
            self._remarks.add(BLANK_LINES)
        return kept

    def _role(self, given: dict[str, Any], at: str) -> str:
        if self._turns.role not in given:
            cure = "dataset=sharegpt" if "from" in given else "dataset.turns.role=<its key for who speaks>"
            raise Refused(f"a message has no {self._turns.role}", f"{at} has {', '.join(map(str, given))}", cure)
        name = given[self._turns.role]
        role = self._roles.get(name.strip().casefold()) if isinstance(name, str) else None
        if role is None:
            where = f"{at}.{self._turns.role} is {name!r}"
            cure = f"+dataset.turns.roles.{name}=assistant, or another role" if isinstance(name, str) and name else ""
            raise Refused(f"a message's {self._turns.role} is none that is known", where, cure)
        return role

    def _look_at_keys(self, given: dict[str, Any], at: str) -> None:
        self._account.keys.update(given)
        for key, value in given.items():
            if key not in self._used and not is_empty(value) and value is not False:
                if key in REFUSED_KEYS and not (key == "reasoning_details" and self._thinking(given, at)):
                    raise Refused(f"a message's {key} cannot be trained", f"in {at}", "leave that key or the row out")
                if key in MASK_KEYS:
                    cure = f'"weight": 0 in place of {key} takes an answer out of the loss'
                    raise Refused(f"a message's {key} may take it out of training", f"{at}.{key} is {value!r}", cure)
                self._account.unused_keys[key] += 1

    def _count_keys_of_assistants(self, given: dict[str, Any], role: str) -> None:
        """Keys that mean something in an assistant's message, and nothing in this one."""
        harmony = () if role == "tool" else ("name", "channel", "recipient")
        for key in (*harmony, *self._thinking_keys, *WEIGHT_KEYS):
            if given.get(key):
                self._account.unused_keys[key] += 1

    def _assistant(self, given: dict[str, Any], content: Any, at: str, *, is_call: bool) -> Message:
        if not is_empty(given.get("name")):
            self._account.unused_keys["name"] += 1
        thinking = self._thinking(given, at)
        if isinstance(content, list):
            content, thinking = self._parted(content, thinking, at)
        channel = given.get("channel") or None
        calls = self._calls(given, at)
        written = isinstance(content, str) and "<tool_call>" in content
        if calls and (written or given.get("recipient") not in (None, "", "all", "user")):
            raise Refused("a message has tool calls, and one in its text or by its recipient too", f"in {at}")
        if is_call and not calls:
            message, calls = self._shared_call(content, thinking, at)
        elif not calls and (recipient := given.get("recipient")):
            message, calls = self._channel_call(recipient, content, thinking, at)
        elif written:
            before, calls = hermes_calls(self._texts.text(content, at), at, self._texts)
            message = self._before_calls(before, thinking, at)
        elif calls:
            message = self._before_calls(content, thinking, at)
        else:
            message = self.answer(content, thinking, at)
        if channel not in (None, "analysis", "commentary", "final"):
            raise Refused("a message's channel is none of analysis, commentary, final", f"{at} has {channel!r}")
        if calls:
            message["tool_calls"] = calls
        elif channel:
            message["channel"] = channel
        return message | self._weight(given, at)

    def _thinking(self, given: dict[str, Any], at: str) -> Any:
        found = {key: given[key] for key in self._thinking_keys if not is_empty(given.get(key))}
        values = list(found.values())
        if any(value != values[0] for value in values):
            raise Refused(f"{' and '.join(found)} of a message differ", f"in {at}")
        return values[0] if values else None

    def _calls(self, given: dict[str, Any], at: str) -> list[dict[str, Any]]:
        """Those of ``tool_calls``, or of ``function_call``, its name before there were several."""
        now, before = (
            [] if is_empty(given.get(key)) else called(given[key], at, self._texts)
            for key in ("tool_calls", "function_call")
        )
        if now and before and [call["function"] for call in now] != [call["function"] for call in before]:
            raise Refused("tool_calls and function_call of a message differ", f"in {at}")
        return now or before

    def _shared_call(self, content: Any, thinking: Any, at: str) -> tuple[Message, list[dict[str, Any]]]:
        """A message whose role is that of a call; thinking in tags may stand before it."""
        if isinstance(content, str):
            inside, written = split_thinking(self._texts.text(content, at), self._tag)
            if "<tool_call>" in written:
                before, calls = hermes_calls(written, at, self._texts)
                return self._before_calls(before, thinking or inside, at), calls
            return self._before_calls(None, thinking or inside, at), called(written, at, self._texts)
        return self._before_calls(None, thinking, at), called(content, at, self._texts)

    def _channel_call(
        self, recipient: Any, content: Any, thinking: Any, at: str
    ) -> tuple[Message, list[dict[str, Any]]]:
        """A message to a recipient, as Harmony has calls: its text is the arguments."""
        if recipient in ("all", "user"):
            return self.answer(content, thinking, at), []
        if not isinstance(recipient, str) or not recipient.startswith("functions."):
            raise Refused("a message's recipient is no function", f"{at} has {recipient!r}, not functions.<name>")
        call = {"name": recipient, "arguments": content}
        return self._before_calls(None, thinking, at), called(call, at, self._texts)

    def _before_calls(self, content: Any, thinking: Any, at: str) -> Message:
        if is_empty(content) or (isinstance(content, str) and content.isspace()):
            message: Message = {"role": "assistant", "content": ""}
            if thinking is not None and not (isinstance(thinking, str) and not thinking.strip()):
                message["thinking"] = self._trimmed(self._texts.text(thinking, f"thinking of {at}"))
            return message
        inside = content if isinstance(content, str) else ""
        if inside.rstrip().lower().endswith(f"</{self._tag}>"):  # thinking alone stands before the call
            inside, _ = split_thinking(f"{inside}.", self._tag)
            if inside and thinking:
                raise Refused(f"the thinking stands in a field of its own and in <{self._tag}> too")
            return self._before_calls(None, thinking or inside, at)
        return self.answer(content, thinking, at)

    def _result(self, given: dict[str, Any], content: Any, at: str) -> Message:
        parts = isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)
        if is_empty(content):
            content = ""
        elif not isinstance(content, str) and not parts:
            content = as_json(content, at)
        text = self._texts.text(self._joined(content, at), at, may_be_empty=True)
        message: Message = {"role": "tool", "content": text}
        named = {key: given[key] for key in ("name", CALL_ID) if not is_empty(given.get(key))}
        if not isinstance(named.get("name", ""), str):
            raise Refused("the name of a tool's result is no text", f"{at}.name is {kind_of(named['name'])}")
        return message | named

    def _weight(self, given: dict[str, Any], at: str) -> Message:
        said = {key: given[key] for key in WEIGHT_KEYS if given.get(key) is not None}
        for key, value in said.items():
            if value not in (0, 1) or isinstance(value, str):
                cure = "0 or false takes a turn out of the loss, 1 or true keeps it"
                raise Refused(f"a message's {key} is neither 0 nor 1", f"{at}.{key} is {value!r}", cure)
        if len({bool(value) for value in said.values()}) > 1:
            raise Refused(f"{' and '.join(said)} of a message contradict each other", f"in {at}")
        return {"train": False} if said and not any(said.values()) else {}

    def _parted(self, parts: list[Any], thinking: Any, at: str) -> tuple[Any, Any]:
        """An assistant's parts of text, and its parts of thinking."""
        thought = [part for part in parts if isinstance(part, dict) and part.get("type") in ("thinking", "reasoning")]
        if thought and thinking:
            raise Refused("the thinking stands in a field of its own and in a part of the content too", f"in {at}")
        if thought:
            for part in thought:
                self._texts.leave_out(part, ("type", "thinking", "reasoning", "text"), "content")
            own = [part.get("thinking") or part.get("reasoning") or part.get("text") for part in thought]
            thinking = self._joined([{"type": "text", "text": text} for text in own], at)
        return self._joined([part for part in parts if part not in thought], at), thinking

    def _joined(self, content: Any, at: str) -> Any:
        """The text of content in parts; other content as it is."""
        if not isinstance(content, list):
            return content
        for part in content:
            kind = part.get("type", "text") if isinstance(part, dict) else kind_of(part)
            if not isinstance(part, str) and kind not in ("text", "input_text", "output_text"):
                raise refused(at, f"has a part of the type {kind}, which is no text", _CURES_OF_PARTS.get(kind, ""))
        for part in content:
            if isinstance(part, dict):
                self._texts.leave_out(part, ("type", "text"), "content")
        return "".join(
            self._texts.text(part if isinstance(part, str) else part.get("text"), at, may_be_empty=True)
            for part in content
        )


def _by_message(columns: dict[str, Any], at: str) -> list[dict[str, Any]]:
    """An object of lists as a list of objects."""
    lengths = {len(values) for values in columns.values() if isinstance(values, list)}
    if len(lengths) != 1 or not all(isinstance(values, list) for values in columns.values()):
        raise Refused(f"{at} is an object whose lists are not equally long")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
