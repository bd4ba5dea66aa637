"""Keep secrets out of what is written down: messages, and the diff that a run keeps of changed code."""

import os
import re
from urllib.parse import unquote

REMOVED = "[removed]"
# Not the shell's PWD, the folder, nor PATH, COMPAT, TOKENIZERS_PARALLELISM and RAY_AUTH_MODE.
SECRET_NAME = re.compile(
    r"PASS|SECRET|TOKEN(?!IZER)|CREDENTIAL|PRIVATE|_PWD(_|$)|CONN(ECTION)?_?STR"
    r"|(^|_)((API|ACCESS|ACCOUNT|AUTH|SSH)?KEY|AUTH(?!_(MODE|TYPE|METHOD|SOCK))|PW|PAT|DSN|JWT)(_|$)",
    re.IGNORECASE,
)
# What is shorter stands in too many places by chance to be removed everywhere.
SHORTEST_SECRET = 4
# By SQLAlchemy's grammar a password may hold `/`, `#` and `?`; digits before one of these are a port all the same.
PASSWORD = r"[^@\s]*(?:@[^@/?#\s]*(?=@))*"  # noqa: S105
IN_ADDRESS = re.compile(rf"(?<=\w://)(?P<secret>[^:/\s@\[]*(?::(?!\d+[/?#]){PASSWORD})?)@")
IN_VARIABLE = re.compile(rf"\w://[^:/\s@]*:(?P<secret>{PASSWORD})@")
SECRETS = [
    IN_ADDRESS,
    *(
        re.compile(pattern, re.IGNORECASE)
        for pattern in (
            r"[?&](?:password|pwd|token|access_token|api_?key|sig)=(?P<secret>[^&\s\"'#]+)",
            r"\bauthorization\W+(?:bearer|basic|digest|token)\s+(?P<secret>[^\s\"',;]+)",
            r"\bbearer\s+(?P<secret>[\w.~+/=-]{16,})",
            r"auth\s*=?\s*\(\s*(?P<q>[\"'])[^\"']*(?P=q)\s*,\s*[\"'](?P<secret>[^\"']+)",
            # Connection strings, of key=value;… and of key=value key=value.
            r"\b(?:password|pwd|\w*accesskey|accountkey|accesstoken)\s*=\s*(?P<secret>[^;\s\"']+);",
            r";\s*(?:password|pwd|\w*accesskey|accountkey|accesstoken)\s*=\s*(?P<secret>[^;\s\"']+)",
            r"(?<=[^\s,(]\s)password=(?P<secret>[^\s\"')]+)",
            r"\b(?:\w*_)?(?:pw|pat|dsn|jwt)[\"']?\s*[:=]\s*[\"'](?P<secret>[^\"']{4,})",
        )
    ),
    re.compile(r"\b(?:[A-Z0-9_]*_)?(?:PW|PAT|DSN|JWT)\s*[:=]\s*(?P<secret>[^\s\"']{4,})"),
]


def redact(text: str) -> str:
    """The text without passwords in addresses, headers and connection strings, and without the environment's secrets.

    These are the values of this process's variables whose names say so (PASSWORD, TOKEN, KEY, …), and the passwords
    inside the value of any variable.
    """
    for secret in sorted(_environment_secrets(), key=len, reverse=True):
        text = text.replace(secret, REMOVED)
    for pattern in SECRETS:
        text = pattern.sub(_without_secret, text)
    return text


def _without_secret(match: re.Match[str]) -> str:
    start, end = (position - match.start() for position in match.span("secret"))
    return match[0][:start] + REMOVED + match[0][end:]


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
        secrets |= {match["secret"] for pattern in (IN_VARIABLE, *SECRETS[1:]) for match in pattern.finditer(value)}
    secrets |= {unquote(secret) for secret in secrets}
    return {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
