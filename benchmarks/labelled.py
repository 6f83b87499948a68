"""The labelled answers that the shipped weights were made from: lines of {id, prompt, response, spans, model or style, category}."""

import json
from pathlib import Path

from etameter.slack.labelled import Answer, answer

FILES = ("slack/dev.jsonl", "slack/dev_public.jsonl")


def load(directory: Path) -> list[Answer]:
    lines = [line for file in FILES for line in (directory / file).read_text().split("\n") if line]
    return [answer(json.loads(line)) for line in lines]
