"""Arms: ways of asking for the same task. An arm is a system prompt × an endpoint and model × sampling.

Each is a file: TOML with the keys of `_File`, or any other file, whose text is the system prompt as it stands. The file's name is the arm's.
What reaches the model is hashed, so that two runs of an arm are known to be of the same arm.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from etameter.config import Name
from etameter.errors import ArmError

CONSTRAINTS = "{{constraints}}"
"""Where a task's own constraints stand in a system prompt."""
LONGEST_CHARACTERS = 65_536
BRAKED = "-braked"
"""How the name ends of an arm that is asked with the slack brake on."""
ALIKE = 0.1
"""How far the length of a control may be from that of the arm it controls for, in words."""

_BUILT_IN = Path(__file__).parent / "arms"
_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_NAME: TypeAdapter[str] = TypeAdapter(Name)

Message = Mapping[str, Any]


class Asked(Protocol):
    """What an arm has to know of a task."""

    @property
    def id(self) -> str: ...
    @property
    def constraints(self) -> Sequence[str]: ...
    @property
    def response_schema(self) -> Mapping[str, Any]: ...


class Sampling(BaseModel):
    """How tokens are drawn. What is None is left to the run, and then to the server."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)

    def over(self, other: "Sampling") -> "Sampling":
        """These settings, and the other's where this one has none."""
        return other.model_copy(update=self.given())

    def given(self) -> dict[str, float | int]:
        """The settings that are not None."""
        return self.model_dump(exclude_none=True)


AS_SERVED = Sampling()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    description: str = Field(min_length=1)
    system: str | None = None
    endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/]+\S*$")
    model: str | None = Field(default=None, min_length=1)
    sampling: Sampling = AS_SERVED
    response_format: Literal["task"] | dict[str, JsonValue] | None = None
    as_long_as: str | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """A way of asking. What is None is left to the run."""

    name: str
    description: str
    system: str | None = None
    endpoint: str | None = None
    model: str | None = None
    sampling: Sampling = AS_SERVED
    response_format: Literal["task"] | Mapping[str, Any] | None = field(default=None, hash=False)
    """`task`: structured output holds the answer to the schema that the task gives."""
    as_long_as: str | None = None
    """The arm whose system prompt this one's has to equal in length."""
    braked: bool = False
    """The server is asked to end streams where nothing but slack would follow."""

    @property
    def hash(self) -> str:
        """Of all that decides what the model is sent, and where its answer ends; name and description do not."""
        told = [self.system, self.endpoint, self.model, self.sampling.given(), self.response_format]
        told += [BRAKED] * self.braked
        return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.name} ({self.hash})"

    def system_for(self, task: Asked) -> str | None:
        """The system prompt, with the task's constraints where it has a place for them.

        Raises:
            ArmError: it has, and the task states none.
        """
        if self.system is None or CONSTRAINTS not in (system := _normal(self.system)):
            return self.system
        if not task.constraints:
            raise ArmError(
                f"arm {self.name} states the constraints of each task, and task {task.id} has none",
                "give the task constraints, or leave the arm out",
            )
        return system.replace(CONSTRAINTS, "\n".join(f"- {constraint}" for constraint in task.constraints))

    def request(
        self, task: Asked, turns: Sequence[Message], model: str, sampling: Sampling = AS_SERVED
    ) -> dict[str, Any]:
        """The body of a chat completion for what was said so far, without any system message in `turns`.

        `model` and `sampling` are the run's; the arm's own go before them.

        Raises:
            ArmError: the arm needs something that the task does not have.
        """
        system = self.system_for(task)
        opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        body: dict[str, Any] = {"model": self.model or model, "messages": [*opening, *turns]}
        body |= self.sampling.over(sampling).given()
        if self.response_format == "task":
            schema = {"name": "answer", "schema": task.response_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.response_format is not None:
            body["response_format"] = self.response_format
        return body


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about an arm that would make it useless or misleading."""

    source: str
    """The arm as it was named, mostly its file."""
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}: {self.remedy}"


def built_in() -> tuple[str, ...]:
    """Names of the arms that come with etameter."""
    return tuple(sorted(path.stem for path in _BUILT_IN.glob("*.toml")))


def find(named: str) -> Arm:
    """An arm by its name, by the path of its file, or as NAME=FILE for an own name. One whose name ends in `BRAKED` is the same with the slack brake on.

    Raises:
        ArmError: there is none, or its file is not one.
    """
    name, given, file = named.partition("=")
    if name.endswith(BRAKED):
        same = find(name.removesuffix(BRAKED) + given + file)
        return replace(same, name=name, description=f"{same.description} With the slack brake.", braked=True)
    if named in built_in():
        return load(_BUILT_IN / f"{named}.toml")
    if given:
        return load(Path(file), name)
    if Path(named).is_file() or Path(named).suffix:
        return load(Path(named))
    raise ArmError(f"there is no arm {named!r}", f"there are {', '.join(built_in())}; a file of your own is NAME=FILE")


def load(path: Path, name: str | None = None) -> Arm:
    """The arm of a file: TOML where its name ends in .toml, else a text that is the system prompt as it stands.

    Raises:
        ArmError: the file can't be read, or is no arm; the message names file and fault.
    """
    name = path.stem if name is None else name
    try:
        _NAME.validate_python(name)
    except ValidationError as error:
        raise ArmError(f"{path}: {name!r} is no name of an arm", "use letters, digits, dots, - and _") from error
    text = _text(path)
    if path.suffix != ".toml":
        return Arm(name, f"the text of {path.name}", _system(text, path))
    try:
        told = _File.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ArmError(f"{path}: this is no TOML ({error})", "mend it there") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in {"dict[str,any]", "literal['task']"})
        if first["type"] == "extra_forbidden":
            raise ArmError(f"{path}: unknown key {key}", f"an arm has {', '.join(_keys(key))}") from error
        raise ArmError(f"{path}: {key}: {first['msg']}", f"an arm has {', '.join(_keys(key))}") from error
    if isinstance(told.response_format, dict) and not isinstance(told.response_format.get("type"), str):
        raise ArmError(f"{path}: response_format has no type", 'give "task", or a table with type = "json_schema"')
    system = None if told.system is None else _system(told.system, path)
    return Arm(
        name=name,
        description=told.description,
        system=system,
        endpoint=None if told.endpoint is None else told.endpoint.rstrip("/"),
        model=told.model,
        sampling=told.sampling,
        response_format=told.response_format,
        as_long_as=told.as_long_as,
    )


def check_arms(named: Iterable[str | Path] = ()) -> list[Problem]:
    """What is wrong with these arms, named as for `find`, or with those that come with etameter. Nothing is sent anywhere."""
    sources = [str(each) for each in named] or [str(path) for path in sorted(_BUILT_IN.glob("*.toml"))]
    problems: list[Problem] = []
    arms: dict[str, tuple[str, Arm]] = {}
    for source in sources:
        try:
            arm = find(source)
        except ArmError as error:
            message = error.message.removeprefix(f"{source.rpartition('=')[2]}: ")
            problems.append(Problem(source, message, error.remedy))
            continue
        if arm.name in arms:
            message = f"the name {arm.name} is taken by {arms[arm.name][0]}"
            problems.append(Problem(source, message, "give every arm its own"))
            continue
        same = next((other for _, other in arms.values() if other.hash == arm.hash), None)
        if same is not None:
            problems.append(Problem(source, f"it asks the same as {same.name}", "leave one of them out"))
        arms[arm.name] = source, arm
    for source, arm in arms.values():
        problems += _length_problems(source, arm, {name: other for name, (_, other) in arms.items()})
    return problems


def _length_problems(source: str, arm: Arm, arms: Mapping[str, Arm]) -> list[Problem]:
    if arm.as_long_as is None:
        return []
    model = arms.get(arm.as_long_as)
    if model is None and arm.as_long_as in built_in():
        model = find(arm.as_long_as)
    if model is None:
        remedy = f"name one of {', '.join(sorted({*arms, *built_in()} - {arm.name}))}"
        return [Problem(source, f"as_long_as names {arm.as_long_as!r}, which is no arm", remedy)]
    words, wanted = (len((each.system or "").split()) for each in (arm, model))
    if abs(words - wanted) <= ALIKE * wanted:
        return []
    return [Problem(source, f"its prompt has {words} words, that of {model.name} {wanted}", f"be within {ALIKE:.0%}")]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ArmError(
            f"{path}: it can't be read ({error.strerror})", "name a file of TOML, or of plain text"
        ) from error
    except UnicodeDecodeError as error:
        raise ArmError(
            f"{path}: it is not UTF-8 ({error.reason} at byte {error.start})", "write it as UTF-8"
        ) from error


def _system(text: str, path: Path) -> str:
    """The text as it is sent: without white space around it."""
    text = text.strip()
    if not text:
        raise ArmError(f"{path}: the system prompt is empty", "leave the key out to send none")
    if len(text) > LONGEST_CHARACTERS:
        raise ArmError(
            f"{path}: the system prompt has {len(text)} characters", f"it may have {LONGEST_CHARACTERS} at most"
        )
    if found := _CONTROL.search(text.replace("\r\n", "\n")):
        raise ArmError(f"{path}: the system prompt has the control character {found[0]!r}", "take it out")
    if strange := sorted(set(_PLACEHOLDER.findall(text)) - {"constraints"}):
        raise ArmError(f"{path}: unknown placeholder {{{{{strange[0]}}}}}", f"there is {CONSTRAINTS}")
    return text


def _normal(text: str) -> str:
    """The text with its placeholders written without white space."""
    return _PLACEHOLDER.sub(r"{{\1}}", text)


def _keys(key: str) -> Iterable[str]:
    return Sampling.model_fields if key.startswith("sampling.") else _File.model_fields
