"""azure-ai-inference, which names no model."""

from __future__ import annotations

from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.models import (
    AssistantMessage,
    ChatCompletionsToolCall,
    ChatCompletionsToolDefinition,
    FunctionCall,
    FunctionDefinition,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from azure.core.credentials import AzureKeyCredential
from common import PARAMETERS, QUESTION, SYSTEM, URL, refused, same, some

client = ChatCompletionsClient(endpoint=URL, credential=AzureKeyCredential("-"))
chat = [SystemMessage(SYSTEM), UserMessage(QUESTION)]
message = client.complete(messages=chat, temperature=0).choices[0].message
same(message.content)
updates = client.complete(messages=chat, temperature=0, stream=True)
same("".join(update.choices[0].delta.content or "" for update in updates if update.choices))
for history in (AssistantMessage(message.content), message):
    some(client.complete(messages=[*chat, history, UserMessage(QUESTION)], temperature=0).choices[0].message.content)
tool = ChatCompletionsToolDefinition(function=FunctionDefinition(name="double", parameters=PARAMETERS))
some(client.complete(messages=chat, tools=[tool], temperature=0).choices[0].message.content)
call = ChatCompletionsToolCall(id="c1", function=FunctionCall(name="double", arguments='{"a": 1}'))
called = [*chat, AssistantMessage(tool_calls=[call]), ToolMessage("2", tool_call_id="c1")]
assert client.complete(messages=called, tools=[tool], temperature=0).choices
refused(lambda: client.complete(messages=chat, response_format="json_object"), "response_format")
