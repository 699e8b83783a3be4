"""The README.md of a model folder: what the model is, how it was made, how well it does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def model_card(facts: Mapping[str, Any], card: Mapping[str, Any], tags: Sequence[str]) -> str:
    """Markdown with the front matter model hubs read.

    `facts` are rows about the architecture. `card` is the trainer's: the keys `title`, `command`,
    `data`, `metrics` (name -> value), `license`, `language` and `datasets` have their own
    place, every other key becomes a row. What is not stated is said to be not stated.
    """
    front: dict[str, Any] = {
        key: card[key] for key in ("license", "language", "datasets") if card.get(key)
    }
    front["library_name"] = "speechssl"
    front["tags"] = list(tags)
    lines = ["---", *(f"{key}: {_yaml(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {card.get('title') or 'Speech model'}", ""]
    lines += [*_table("property", facts), ""]
    lines += ["## Use", "", "```python", "import speechssl", ""]
    lines += ['model = speechssl.load("path/to/this/folder")']
    if "automatic-speech-recognition" in tags:
        lines += ['print(speechssl.transcribe(["speech.flac"], model)[0].text)', "```", ""]
    else:
        lines += [
            'features = speechssl.Extractor(model)(["speech.flac"])[0]',
            "features.values  # (frames, dimensions), at features.times_sec",
            "```",
            "",
        ]
    lines += ["## Training", "", f"Data: {_text(card.get('data'))}", ""]
    if card.get("command"):
        lines += ["```sh", str(card["command"]), "```", ""]
    else:
        lines += ["Command: not stated.", ""]
    rest = {key: value for key, value in card.items() if key not in _PLACED}
    if rest:
        lines += [*_table("setting", rest), ""]
    lines += ["## Results", ""]
    metrics = card.get("metrics") or {}
    lines += _table("metric", metrics) if metrics else ["Not stated."]
    lines += ["", "## License", "", _text(card.get("license")), ""]
    return "\n".join(lines)


_PLACED = frozenset({"title", "command", "data", "metrics", "license", "language", "datasets"})


def _table(head: str, rows: Mapping[str, Any]) -> list[str]:
    body = [f"| {key} | {_text(value)} |" for key, value in rows.items()]
    return [f"| {head} | value |", "|---|---|", *body]


def _text(value: Any) -> str:
    if value is None or value == "":
        return "not stated"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.replace("|", "\\|").replace("\n", " ")


def _yaml(value: Any) -> str:
    """JSON is a subset of YAML, and quotes whatever needs quoting."""
    return json.dumps(value, ensure_ascii=False, default=str)
