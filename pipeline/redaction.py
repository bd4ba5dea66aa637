"""Keep secrets out of what is written down: messages, and the diff that a run keeps of changed code."""

import os
import re
from urllib.parse import unquote, urlsplit

REMOVED = "[removed]"
# Not the shell's PWD, the folder, nor TOKENIZERS_PARALLELISM.
SECRET_NAME = re.compile(r"PASS|SECRET|TOKEN(?!IZER)|CREDENTIAL|PRIVATE|(^|_)(KEY|AUTH)(_|$)|_PWD(_|$)", re.IGNORECASE)
# What is shorter stands in too many places by chance to be removed everywhere.
SHORTEST_SECRET = 4


def redact(text: str) -> str:
    """The text without passwords in addresses and without the secrets of this process's environment.

    These are the values of variables whose names say so (PASSWORD, TOKEN, KEY, …) and the passwords of
    addresses in any variable.
    """
    for secret in sorted(_environment_secrets(), key=len, reverse=True):
        text = text.replace(secret, REMOVED)
    return re.sub(r"(\w://)[^/\s@]+@", rf"\1{REMOVED}@", text)


def redact_diff(diff: str) -> str:
    """A diff in which every line that may hold a secret is replaced, by the rules of detect-secrets.

    They take a line too many rather than one too few.
    """
    from detect_secrets.settings import default_settings, get_plugins

    lines, inside_key = [], False
    with default_settings():
        detectors = list(get_plugins())
        for number, line in enumerate(redact(diff).splitlines(), 1):
            inside_key = inside_key or ("BEGIN" in line and "PRIVATE KEY" in line)
            # Under the name of a YAML file values count as secrets without quotes too.
            hidden = inside_key or any(detector.analyze_line("diff.yaml", line, number) for detector in detectors)
            lines.append(line[:1] + REMOVED if hidden else line)
            inside_key = inside_key and not ("END" in line and "PRIVATE KEY" in line)
    return "".join(f"{line}\n" for line in lines)


def _environment_secrets() -> set[str]:
    secrets = set()
    for name, value in os.environ.items():
        if SECRET_NAME.search(name):
            secrets.add(value)
        elif "@" in value and "://" in value:
            try:
                password = urlsplit(value).password or ""
            except ValueError:
                continue
            secrets |= {password, unquote(password)}
    return {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
