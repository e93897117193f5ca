"""langchain-openai."""

from __future__ import annotations

from common import QUESTION, SYSTEM, URL, refused, same, some
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


@tool
def double(a: int) -> int:
    """Doubles."""
    return 2 * a


class Form(BaseModel):
    a: int


model = ChatOpenAI(base_url=URL, api_key="-", model="tiny", temperature=0)
chat = [SystemMessage(SYSTEM), HumanMessage(QUESTION)]
answer = model.invoke(chat)
same(answer.content)
same("".join(chunk.content for chunk in model.stream(chat)))
some(model.invoke([*chat, answer, HumanMessage(QUESTION)]).content)
with_tools = model.bind_tools([double])
some(with_tools.invoke(chat).content)
called = answer.model_copy(update={"tool_calls": [{"name": "double", "args": {"a": 1}, "id": "c1"}]})
with_tools.invoke([*chat, called, ToolMessage("2", tool_call_id="c1")])
refused(lambda: model.bind_tools([double], tool_choice="any").invoke(chat), "tool_choice")
for method, field in (("json_schema", "response_format"), ("function_calling", "tool_choice")):
    refused(lambda method=method: model.with_structured_output(Form, method=method).invoke(chat), field)
responses = ChatOpenAI(base_url=URL, api_key="-", model="tiny", temperature=0, use_responses_api=True)
said = responses.invoke(chat)
same(said.text)
some(responses.invoke([*chat, said, HumanMessage(QUESTION)]).text)
