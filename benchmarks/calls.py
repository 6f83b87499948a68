"""Asks generated questions that take a call of a tool, for `etameter eta minimal`.

    python -m benchmarks.calls --url http://127.0.0.1:8000 --out calls.jsonl [--count 50] [--seed 1]

Each line has the request, the answer and the call that would be right, so that η_minimal is of right calls alone. The tools have optional arguments with defaults,
which a model may leave out or write. All of them are in each request, and the server is asked that one be called (`"tool_choice": "required"`), without sampling.
"""

import argparse
import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import aiohttp

AT_ONCE = 8
MOST_TOKENS = 256

_CITIES: Final = ("Lagos", "Oslo", "Quito", "Hanoi", "Leeds", "Perth")
_NAMES: Final = ("Ada", "Boris", "Chen", "Dora", "Emil", "Fatima")


@dataclass(frozen=True, slots=True)
class Question:
    """What a user asks, and the call that does it, with no argument that is at its default."""

    text: str
    name: str
    arguments: Mapping[str, object]


def _tool(name: str, does: str, required: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {**required, **optional}, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": does, "parameters": parameters}}


_TEXT: Final = {"type": "string"}
TOOLS: Final = [
    _tool(
        "weather_forecast",
        "The weather of the next days in a city.",
        {"city": _TEXT},
        {"days": {"type": "integer", "default": 1}, "unit": {"enum": ["celsius", "fahrenheit"], "default": "celsius"}},
    ),
    _tool(
        "book_table",
        "Books a table in a restaurant.",
        {"restaurant": _TEXT, "people": {"type": "integer"}, "time": {**_TEXT, "description": "HH:MM"}},
        {"outdoors": {"type": "boolean", "default": False}, "note": {**_TEXT, "default": ""}},
    ),
    _tool(
        "send_money",
        "Sends money to somebody.",
        {"to": _TEXT, "amount": {"type": "integer"}},
        {"currency": {**_TEXT, "default": "EUR"}, "urgent": {"type": "boolean", "default": False}},
    ),
    _tool(
        "add_event",
        "Puts an event into the calendar.",
        {"title": _TEXT, "date": {**_TEXT, "description": "YYYY-MM-DD"}},
        {"minutes": {"type": "integer", "default": 60}, "guests": {"type": "array", "items": _TEXT, "default": []}},
    ),
]


def _forecast(random: Random) -> Question:
    city, days = random.choice(_CITIES), random.randint(2, 9)
    if random.random() < 0.5:
        return Question(f"What will the weather be in {city} tomorrow?", "weather_forecast", {"city": city})
    text = f"What will the weather be in {city} in the next {days} days, in Fahrenheit?"
    return Question(text, "weather_forecast", {"city": city, "days": days, "unit": "fahrenheit"})


def _table(random: Random) -> Question:
    people, time = random.randint(2, 9), f"{random.randint(18, 21)}:{random.choice(('00', '15', '30'))}"
    restaurant = f"Chez {random.choice(_NAMES)}"
    arguments = {"restaurant": restaurant, "people": people, "time": time}
    text = f"Please book a table for {people} at {restaurant} at {time}"
    return random.choice(
        (Question(f"{text}.", "book_table", arguments), Question(f"{text}, outdoors.", "book_table", {**arguments, "outdoors": True}))
    )  # fmt: skip


def _money(random: Random) -> Question:
    name, amount = random.choice(_NAMES), random.randint(5, 900)
    return random.choice(
        (
            Question(f"Send {amount} euros to {name}.", "send_money", {"to": name, "amount": amount}),
            Question(f"Send {name} {amount} Swiss francs, urgently.", "send_money", {"to": name, "amount": amount, "currency": "CHF", "urgent": True}),
        )
    )  # fmt: skip


def _event(random: Random) -> Question:
    guests = random.sample(_NAMES, random.randint(0, 2))
    title, date = (
        random.choice(("Review", "Lunch", "Training")),
        f"2027-0{random.randint(1, 9)}-{random.randint(10, 28)}",
    )
    arguments: dict[str, object] = {"title": title, "date": date}
    text = f"Put “{title}” into my calendar on {date}, for an hour"
    if guests:
        return Question(f"{text}, with {' and '.join(guests)}.", "add_event", {**arguments, "guests": guests})
    return Question(f"{text}.", "add_event", arguments)


_KINDS: Final[tuple[Callable[[Random], Question], ...]] = (_forecast, _table, _money, _event)


def questions(seed: int, count: int) -> list[Question]:
    """In turn of each kind; the same of the same seed."""
    random = Random(f"calls {seed}")  # noqa: S311  # tasks, no secrets
    return [_KINDS[number % len(_KINDS)](random) for number in range(count)]


def request_of(question: Question, model: str) -> dict[str, Any]:
    """The body of a chat completion."""
    messages = [{"role": "user", "content": question.text}]
    asked = {"tools": TOOLS, "tool_choice": "required", "temperature": 0.0, "max_tokens": MOST_TOKENS}
    return {"model": model, "messages": messages, **asked}


async def collect(url: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Lines for `etameter eta minimal`."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900)) as session:
        async with session.get(f"{url}/v1/models") as response:
            model = (await response.json())["data"][0]["id"]

        async def one(number: int, question: Question) -> dict[str, Any]:
            body = request_of(question, model)
            headers = {"X-Etameter-Run": "calls"}
            async with gate, session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
                response.raise_for_status()
                answer = await response.json()
            right = {"name": question.name, "arguments": dict(question.arguments)}
            return {"id": f"calls-{seed}-{number}", "request": body, "answer": answer, "calls": [right]}

        return await asyncio.gather(*(one(*each) for each in enumerate(questions(seed, count))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    lines = asyncio.run(collect(given.url, given.seed, given.count))
    given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{len(lines)} answers, in {given.out}: etameter eta minimal {given.out}")


if __name__ == "__main__":
    main()
