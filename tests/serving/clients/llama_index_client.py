"""llama-index, by its OpenAILike."""

from __future__ import annotations

import asyncio

from common import QUESTION, SYSTEM, URL, refused, same, some
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


def double(a: int) -> int:
    """Doubles."""
    return 2 * a


class Form(BaseModel):
    a: int


model = OpenAILike(
    api_base=URL,
    api_key="-",
    model="tiny",
    is_chat_model=True,
    is_function_calling_model=True,
    temperature=0,
    context_window=4096,
    max_retries=0,
)
chat = [ChatMessage(role="system", content=SYSTEM), ChatMessage(role="user", content=QUESTION)]
message = model.chat(chat).message
same(message.content)
same("".join(chunk.delta or "" for chunk in model.stream_chat(chat)))
same(asyncio.run(model.achat(chat)).message.content)
some(model.chat([*chat, message, chat[1]]).message.content)
some(model.chat_with_tools([FunctionTool.from_defaults(double)], chat_history=chat).message.content)
refused(lambda: model.structured_predict(Form, PromptTemplate(QUESTION)), "tool_choice")
