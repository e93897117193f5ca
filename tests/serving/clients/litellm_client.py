"""litellm, as OpenAI's server, as a vLLM and as Azure's."""

from __future__ import annotations

import asyncio

import litellm
from common import CHAT, TOOL, URL, refused, same, some

for provider in ("openai", "hosted_vllm", "azure_ai"):
    options = {"model": f"{provider}/tiny", "api_base": URL, "api_key": "-", "temperature": 0}
    message = litellm.completion(messages=CHAT, **options).choices[0].message
    same(message.content)
    some(message.reasoning_content)

options["model"] = "openai/tiny"
some(litellm.completion(messages=[*CHAT, message, CHAT[1]], **options).choices[0].message.content)
chunks = litellm.completion(messages=CHAT, stream=True, **options)
same("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
some(litellm.completion(messages=CHAT, tools=[TOOL], tool_choice="auto", **options).choices[0].message.content)
both = asyncio.run(litellm.acompletion(messages=CHAT, n=2, logprobs=True, **options)).choices
same(both[1].message.content)
refused(
    lambda: litellm.completion(messages=CHAT, response_format={"type": "json_object"}, **options), "response_format"
)
same(litellm.responses(input=CHAT, **options).output[-1].content[0].text)
