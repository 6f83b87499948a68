"""Where a verdict goes beside the page: Markdown, JUnit XML, a textfile for node_exporter, a Pushgateway, a webhook.

Nothing that fails here changes a verdict or loses a night: files and figures are written before anything is sent.
"""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from etameter.errors import NightError
from etameter.nightly_section import NightlySection
from etameter.prompts.visible import visible

from .night import Night
from .verdict import Change, Verdict
from .wording import SIMULATED, number, percent, sentence, sentences

TEXTFILE: Final = "etameter_nightly.prom"
_TIMEOUT_S: Final = 10.0


def told(night: Night, verdict: Verdict) -> dict[str, Any]:
    """The verdict for programs: what `--json` prints and `verdict.json` holds."""
    changes = [{**asdict(change), "headline": change.headline} for change in verdict.changes]
    return {
        **asdict(verdict),
        "name": night.run.name,
        "changes": changes,
        "sentences": list(sentences(night.run, verdict)),
    }


def markdown(night: Night, verdict: Verdict) -> str:
    """For a job's summary or a chat."""
    run = night.run
    lines = [f"# {_plain(run.name)}, {run.began[:16].replace('T', ' ')}: {verdict.word}", ""]
    lines += [f"**{SIMULATED}**", ""] if run.source == "simulated" else []
    lines += [f"{_plain(said)}  " for said in sentences(run, verdict)]
    headline = [change for change in verdict.changes if change.headline]
    if headline:
        lines += [
            "",
            "| series | tonight | against the nights before | 95 % interval | | source |",
            "| --- | ---: | ---: | ---: | --- | --- |",
        ]
        lines += [_row(change) for change in headline]
    return "\n".join([*lines, "", f"Run {run.run_id}, model {_plain(run.model or 'unknown')}, {run.status}.", ""])


def junit(night: Night, verdict: Verdict) -> str:
    """A test a series: a headline that is worse has failed, what is not known was skipped, and a night that can't be compared is an error."""
    suite = ET.Element("testsuite", name=f"etameter nightly {night.run.name}", timestamp=night.run.began[:19])
    if verdict.exit_code and not verdict.changes:
        case = ET.SubElement(suite, "testcase", classname=night.run.name, name="night")
        ET.SubElement(case, "error", message=" ".join(sentences(night.run, verdict)), type=verdict.word)
    for change in verdict.changes:
        case = ET.SubElement(suite, "testcase", classname=f"{night.run.name}.{change.stage}", name=change.metric)
        if change.headline and change.word == "worse":
            ET.SubElement(case, "failure", message=f"{change.source}: {sentence(change)}", type="regression")
        elif change.word in ("unknown", "unclear"):
            ET.SubElement(case, "skipped", message=sentence(change))
    counted = {
        "tests": "testcase",
        "failures": "testcase/failure",
        "errors": "testcase/error",
        "skipped": "testcase/skipped",
    }
    for name, path in counted.items():
        suite.set(name, str(len(suite.findall(path))))
    for element in suite.iter():
        for name, text in element.items():
            element.set(name, visible(text))  # XML has no way to write an escape
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def textfile(night: Night, verdict: Verdict) -> str:
    """Prometheus text. Series of which nothing is known are left out: missing is not zero."""
    run = night.run
    own = {"name": run.name, "source": run.source or "none"}
    lines = [
        *_family(
            "etameter_nightly_exit_code",
            "What the job exits with: 0, 3 regression, 4 not comparable, 5 unstable, 2 it failed.",
            [(own, verdict.exit_code or run.exit_code)],
        ),
        *_family(
            "etameter_nightly_info", "The last night.", [({**own, "run_id": run.run_id, "verdict": verdict.word}, 1)]
        ),
        *_family(
            "etameter_nightly_figure",
            "A figure of the last night, in its own unit.",
            [
                (
                    {
                        **own,
                        "source": figure.source,
                        "stage": figure.stage,
                        "metric": figure.metric,
                        "unit": figure.unit,
                    },
                    figure.value,
                )
                for figure in night.figures
            ],
        ),
        *_family(
            "etameter_nightly_change_ratio",
            "Change against the nights before; 0.05 is 5 % more.",
            [
                (
                    {
                        **own,
                        "source": change.source,
                        "stage": change.stage,
                        "metric": change.metric,
                        "word": change.word,
                    },
                    change.change,
                )
                for change in verdict.changes
            ],
        ),
    ]
    return "".join(f"{line}\n" for line in lines)


def send(section: NightlySection, night: Night, verdict: Verdict) -> list[str]:
    """Wherever the configuration says; what went wrong, a line for each."""
    text = textfile(night, verdict)
    ways: list[tuple[str | Path | None, Callable[[], None]]] = [
        (section.textfile, lambda: write_textfile(section.textfile or Path(), text)),
        (section.pushgateway, lambda: push(section.pushgateway or "", night.run.name, text)),
        (section.webhook, lambda: call(section.webhook or "", told(night, verdict))),
    ]
    failed = []
    for wanted, way in ways:
        try:
            if wanted is not None:
                way()
        except (NightError, OSError) as error:
            failed.append(str(error))
    return failed


def write_textfile(folder: Path, text: str) -> None:
    """For node_exporter's textfile collector: there at once and whole. Raises OSError."""
    building = folder / f".{TEXTFILE}.{os.getpid()}"
    building.write_text(text, encoding="utf-8")
    building.chmod(0o644)
    building.rename(folder / TEXTFILE)


def push(gateway: str, name: str, text: str) -> None:
    """Replaces what the Pushgateway has of this job. `name` is of the characters that the configuration lets a job's name have. Raises NightError."""
    _send(
        "PUT",
        f"{gateway.rstrip('/')}/metrics/job/etameter_nightly/name/{name}",
        text.encode(),
        "text/plain; version=0.0.4",
    )


def call(webhook: str, content: Mapping[str, Any]) -> None:
    """Posts what `told` says, as JSON. Raises NightError."""
    _send("POST", webhook, json.dumps(content, ensure_ascii=False).encode(), "application/json")


def _send(method: str, url: str, body: bytes, kind: str) -> None:
    """The address may hold a secret, and no error shows more of it than its host."""
    if not url.startswith(("http://", "https://")):
        raise NightError(
            "an address to send a verdict to does not begin with http:// or https://", "mend it in [nightly]"
        )
    request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": kind})  # noqa: S310  # looked at above
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise _not_taken(request, f"HTTP {error.code}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _not_taken(request, type(error).__name__) from None


def _not_taken(request: urllib.request.Request, why: str) -> NightError:
    return NightError(
        f"{request.host} did not take the verdict ({why})", "the run itself is kept; mend the address in [nightly]"
    )


def _family(name: str, words: str, values: list[tuple[dict[str, str], float | None]]) -> Iterator[str]:
    if not any(value is not None for _, value in values):
        return
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} gauge"
    for labels, value in values:
        if value is not None:
            yield f"{name}{{{','.join(f'{key}={json.dumps(label, ensure_ascii=False)}' for key, label in labels.items())}}} {value!r}"


def _row(change: Change) -> str:
    moved = "–" if change.change is None else percent(change.change)
    ends = "–" if change.low is None or change.high is None else f"{percent(change.low)} to {percent(change.high)}"
    return f"| {_plain(change.series)} | {number(change.value)} {change.unit} | {moved} | {ends} | {change.word} | {change.source} |"


def _plain(text: str) -> str:
    """Nothing in it is Markdown."""
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in text)
