"""Remove secrets from messages and from the diff of changed code that a run stores."""

import os
import re
from urllib.parse import unquote

REMOVED = "[removed]"
# Not PWD (the shell's folder), PATH, COMPAT, TOKENIZERS_PARALLELISM, RAY_AUTH_MODE, SSH_ASKPASS or FTP_PASSIVE.
SECRET_NAME = re.compile(
    r"(?<!ASK)PASS(?!IVE)|SECRET|TOKEN(?!IZER)|CREDENTIAL(?!S?_(STORE|HELPER|CACHE))|PRIVATE|_PWD(_|$)"
    r"|CONN(ECTION)?_?STR|(^|_)((API|ACCESS|ACCOUNT|AUTH|SSH)?KEY|AUTH(?!_(MODE|TYPE|METHOD|SOCK))|PW|PAT|DSN|JWT)(_|$)",
    re.IGNORECASE,
)
# Shorter values occur by chance in too many places to be removed everywhere.
SHORTEST_SECRET = 4
# Values that are settings, never secrets, whatever the variable's name.
ORDINARY = {"true", "false", "none", "null", "auto", "always", "never", "enabled", "disabled"}
# All repetitions are bounded and possessive (`}+`), so that the time is linear in the text's length, not quadratic.
# In SQLAlchemy's grammar a password may contain `/`, `#` and `?`.
USER = r"[^:/\s@\[\"'<>]{0,200}+"
PASSWORD = r"[^@\s]{0,2000}+(?:@[^@/?#\s]{0,200}+(?=@)){0,20}+"  # noqa: S105
# Digits are a port if a quotation mark follows, or in a web address a path.
PORT = rf"{USER}:\d{{1,5}}[\"'`<>\\]|(?:(?<=http://)|(?<=https://)){USER}:\d{{1,5}}[/?#]"
IN_ADDRESS = re.compile(rf"(?<=\w://)(?!{PORT})(?P<secret>{USER}(?::{PASSWORD})?)@")
IN_VARIABLE = re.compile(rf"\w://{USER}:(?P<secret>{PASSWORD})@")
# Placeholders in code and documents are not secrets: {password}, <password>, …, $PASSWORD, ${password}, DB_PASSWORD.
LITERAL = r"(?!\{[\w.]{0,40}\}|<[\w -]{1,40}>|…|(?-i:\$[A-Z_]{2}|\$[{(]|[A-Z]{1,40}_[A-Z_]{1,40}+(?![\w-])))"
KEYS = r"(?:password|pwd|\w{0,40}accesskey|accountkey|accesstoken)"
SECRETS = [
    IN_ADDRESS,
    *(
        re.compile(pattern, re.IGNORECASE)
        for pattern in (
            r"[?&](?:sig|[\w.-]{0,40}(?:password|pwd|token|secret|api_?key|signature|credential))="
            rf"{LITERAL}(?P<secret>[^&\s\"'#`]+)",
            r"\bauthorization\W{1,9}(?:bearer|basic|digest|token)\s{1,9}"
            rf"{LITERAL}(?P<secret>[^\s\"',;]+)",
            r"\bbearer\s{1,9}(?P<secret>[\w.~+/=-]{16,})",
            r"\b(?:x-[a-z-]{0,30}|(?:api|auth|access|private|job|deploy)-)(?:key|token|secret)[\"']?\s{0,9}:\s{0,9}[\"']?"
            rf"{LITERAL}(?P<secret>[^\s\"',;]{{4,}})",
            r"auth\s{0,9}+=?\s{0,9}+\(\s{0,99}+(?P<q>[\"'])[^\"']{0,200}+(?P=q)\s{0,9}+,\s{0,99}+[\"']"
            rf"{LITERAL}(?P<secret>[^\"']+)",
            # Arguments, and printed Python and JSON values.
            r"(?:password|passwd|passphrase|pwd|secret|token|(?:api|access)_?key)[\"']?\s{0,9}[:=]{1,2}\s{0,9}[\"']"
            rf"{LITERAL}(?P<secret>[^\"'\n]{{4,}})",
            # Connection strings: key=value;… and key=value key=value.
            rf"\b{KEYS}\s{{0,9}}=\s{{0,9}}(?P<secret>[^;\s\"']{{1,500}}+);",
            rf";\s{{0,9}}{KEYS}\s{{0,9}}=\s{{0,9}}(?P<secret>[^;\s\"']+)",
            r"(?:(?<=[^\s,(]\s)|(?<=--))password=(?P<secret>[^\s\"')]+)",
            r"\b(?:\w{0,40}_)?(?:pw|pat|dsn|jwt)[\"']?\s{0,9}[:=]\s{0,9}[\"'](?P<secret>[^\"']{4,})",
        )
    ),
    re.compile(r"\b(?:[A-Z0-9_]{0,40}_)?(?:PW|PAT|DSN|JWT)\s{0,9}[:=]\s{0,9}(?P<secret>[^\s\"']{4,})"),
    # Shell variables. A value with a call is Python code, not a secret.
    re.compile(
        r"\b[A-Z0-9_]{0,40}(?:PASSWORD|PASSWD|_PWD|TOKEN|SECRET|(?:API|ACCESS|ACCOUNT)_?KEY)="
        rf"(?![\w.]{{1,80}}[(\[]){LITERAL}(?P<secret>[^\s\"'`,;)]{{4,}})"
    ),
]


def redact(text: str) -> str:
    """Replace the environment's secrets, and passwords and tokens that are recognisable by their context.

    The environment's secrets are the values of variables with telling names (PASSWORD, TOKEN, KEY, …), and passwords
    inside the value of any variable. The contexts are addresses, headers, connection strings, arguments and printed
    dictionaries.
    """
    return _without_patterns(_without_environment(text))


def _without_environment(text: str) -> str:
    for secret in sorted(_environment_secrets(), key=len, reverse=True):
        text = text.replace(secret, REMOVED)
    return text


def _without_patterns(text: str) -> str:
    for pattern in SECRETS:
        text = pattern.sub(_without_secret, text)
    return text


def _without_secret(match: re.Match[str]) -> str:
    start, end = (position - match.start() for position in match.span("secret"))
    return match[0][:start] + REMOVED + match[0][end:]


def redact_diff(diff: str) -> str:
    """Replace every line of a diff that may hold a secret, by the rules of detect-secrets and those of `redact`.

    The rules of detect-secrets prefer false positives to missed secrets.
    """
    from detect_secrets.settings import default_settings, get_plugins

    diff = IN_ADDRESS.sub(_without_secret, _without_environment(diff))
    lines, inside_key = [], False
    with default_settings():
        detectors = list(get_plugins())
        for number, line in enumerate(diff.splitlines(), 1):
            inside_key = inside_key or ("BEGIN" in line and "PRIVATE KEY" in line)
            # For a YAML file name detect-secrets also checks values without quotes.
            hidden = inside_key or any(detector.analyze_line("diff.yaml", line, number) for detector in detectors)
            lines.append(line[:1] + REMOVED if hidden else line)
            inside_key = inside_key and not ("END" in line and "PRIVATE KEY" in line)
    # The detectors run first, because they may miss the rest of a line that is already partly redacted.
    return _without_patterns("".join(f"{line}\n" for line in lines))


def _environment_secrets() -> set[str]:
    secrets = set()
    for name, value in os.environ.items():
        # A number in a variable named …TOKENS… is a limit, not a secret.
        if SECRET_NAME.search(name) and not ("TOKENS" in name.upper() and value.isdecimal()):
            secrets.add(value)
        secrets |= {match["secret"] for pattern in (IN_VARIABLE, *SECRETS[1:]) for match in pattern.finditer(value)}
    secrets |= {unquote(secret) for secret in secrets}
    return {secret for secret in secrets if len(secret) >= SHORTEST_SECRET and secret.lower() not in ORDINARY}
