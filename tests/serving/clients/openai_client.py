"""openai, synchronous and asynchronous, chat completions and responses."""

from __future__ import annotations

import asyncio

from common import CHAT, QUESTION, SYSTEM, TOOL, URL, refused, same, some
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

options = {"model": "tiny", "temperature": 0}
with OpenAI(base_url=URL, api_key="-") as client:
    chat = client.chat.completions
    message = chat.create(messages=CHAT, **options).choices[0].message
    same(message.content)
    chunks = chat.create(messages=CHAT, stream=True, stream_options={"include_usage": True}, **options)
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
    some(chat.create(messages=[*CHAT, message, CHAT[1]], **options).choices[0].message.content)
    with chat.stream(messages=CHAT, tools=[TOOL], **options) as stream:
        some(stream.get_final_completion().choices[0].message.content)
    call = {"id": "c1", "type": "function", "function": {"name": "double", "arguments": '{"a": 1}'}}
    called = [
        *CHAT,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    assert chat.create(messages=called, tools=[TOOL], n=2, logprobs=True, top_logprobs=2, **options).choices[1].logprobs

    class Form(BaseModel):
        a: int

    refused(lambda: chat.parse(messages=CHAT, response_format=Form, **options), "response_format")
    refused(lambda: chat.create(messages=CHAT, tools=[TOOL], tool_choice="required", **options), "tool_choice")
    assert client.models.retrieve("tiny").id == next(iter(client.models.list())).id == "tiny"

    response = client.responses.create(input=QUESTION, instructions=SYSTEM, **options)
    same(response.output_text)
    with client.responses.stream(input=CHAT, **options) as events:
        same(events.get_final_response().output_text if events.until_done() else "")
    history = [*CHAT, *response.output, CHAT[1]]
    some(client.responses.create(input=history, **options).output_text)
    refused(lambda: client.responses.parse(input=CHAT, text_format=Form, **options), "text.format")


async def converse() -> None:
    async with AsyncOpenAI(base_url=URL, api_key="-") as client:
        chat = client.chat.completions
        message = (await chat.create(messages=CHAT, **options)).choices[0].message
        same(message.content)
        stream = await chat.create(messages=CHAT, stream=True, **options)
        same("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))
        some((await chat.create(messages=[*CHAT, message, CHAT[1]], **options)).choices[0].message.content)


asyncio.run(converse())
