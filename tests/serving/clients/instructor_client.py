"""instructor: as it is without a form, and the ways that need a constrained answer."""

from __future__ import annotations

import instructor
from common import CHAT, URL, refused, same, some
from instructor.core.exceptions import InstructorRetryException
from openai import OpenAI
from pydantic import BaseModel

options = {"model": "tiny", "temperature": 0, "max_retries": 0}


class Form(BaseModel):
    a: int


def client(mode: str) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=URL, api_key="-"), mode=getattr(instructor.Mode, mode))


plain = client("MD_JSON").chat.completions
message = plain.create(messages=CHAT, response_model=None, **options).choices[0].message
same(message.content)
history = [*CHAT, message.model_dump(), CHAT[1]]
some(plain.create(messages=history, response_model=None, **options).choices[0].message.content)
chunks = plain.create(messages=CHAT, response_model=None, stream=True, **options)
same("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
try:
    plain.create(messages=CHAT, response_model=Form, **options)
except InstructorRetryException as error:
    assert "JSON" in str(error), error  # the tiny model writes none; it was asked and has answered
for mode, field in (("JSON", "response_format"), ("JSON_SCHEMA", "response_format"), ("TOOLS", "tool_choice")):
    forms = client(mode).chat.completions
    refused(lambda forms=forms: forms.create(messages=CHAT, response_model=Form, **options), field)
