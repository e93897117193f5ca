"""The keys ``generate``: who writes answers to the questions of the training rows, and which of them are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ftkit.config.fields import Fraction, Group, Name, PositiveInt, VariableName

SOURCES = ("merged", "base", "url")
"""Words of ``generate.source``; anything else is the name of a run."""


class Generate(Group):
    source: Name
    """Who writes. merged: this run's merged model. base: the model before training. url: the server at generate.url.
    Anything else: the merged model of the run of that name."""
    url: str | None
    """Address of an OpenAI-compatible server up to /v1, http://127.0.0.1:8000/v1 say."""
    model: str | None
    """Name that this server knows the model by."""
    api_key_env: VariableName | None
    """Name of the environment variable that holds the server's key; the key itself is in no configuration or record."""
    extra_body: dict[str, Any]
    """More of each request to it, {reasoning_effort: high} for instance."""
    concurrency: PositiveInt
    """Requests to it at a time."""
    timeout_s: Annotated[float, Field(gt=0)]
    """Seconds that it may take for one answer."""
    patience_s: Annotated[float, Field(ge=0)]
    """Seconds that a request is tried again for while the server is down, busy (429) or failing (500)."""
    path: str | None
    """Other questions with their answers, laid out as the rows of dataset.path: file, folder or pattern. null: those
    of the training rows. Held-out questions, and ones like them, are never asked."""
    questions: PositiveInt | None
    """Questions to ask at the most, the first ones; null asks all."""
    hint: str | None
    """Put behind each question when it is asked, and into no row: how to think, say, so that the tuned model thinks so
    unasked. null asks as the rows do."""
    match: Literal["exact", "last-number", "contains"]
    """When an answer is right, as evaluation.match."""
    samples: PositiveInt
    """Answers to each question."""
    temperature: Annotated[float, Field(ge=0, le=2)]
    """0 takes the likeliest token each time; above, tokens are drawn."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    """Tokens are drawn from the likeliest ones that have this share of the probability together; 1: from all."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of what is drawn; the same seed gives the same answers, whatever else is asked and at a time."""
    max_new_tokens: PositiveInt
    """Longest answer in tokens, thinking included; a longer one is cut off and not kept."""
    batch_size: PositiveInt
    """Answers that a model here writes at a time."""
    keep: PositiveInt
    """Answers kept of each question at the most, the first ones."""
    language: Annotated[str, Field(pattern="^[a-z]{2}$")] | None
    """Language that the thinking must be in, by its two letters, ja for instance; null takes any."""
    max_thinking_tokens: PositiveInt | None
    """Longest thinking that is kept, in tokens; null takes any."""
    near_duplicates: Fraction
    """Likeness (Jaccard, on runs of 5 characters) from which two thinkings of one question are alike, and the second
    is not kept; 1 looks at equal ones only."""
    rewrite: str | None
    """Request by which the same model writes right thinking in another language anew, with {question}, {thinking} and
    {answer} in it; its final answer becomes the thinking. null keeps no such answer."""
    replay: bool
    """true puts the run's own training rows beside what is kept."""
