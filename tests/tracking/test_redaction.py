"""Secrets are removed from messages and diffs."""

import time
from pathlib import Path

import pytest

from pipeline.tracking import runs
from pipeline.tracking.journal import journals
from pipeline.tracking.redaction import redact, redact_diff
from tests.helpers import PROJECT, files_with, run, small_params


def test_an_address_loses_its_credentials() -> None:
    """User and password are removed from an address; host and path stay."""
    assert redact("at http://bob:pa55@host:5000/x and postgresql://ann:b@db/m") == (
        "at http://[removed]@host:5000/x and postgresql://[removed]@db/m"
    )
    assert redact("postgresql://bob:pa/s#s?w@db/m") == "postgresql://[removed]@db/m"
    assert redact("http://bob:p@55@host/x, postgresql://db/m?password=hunter2") == (
        "http://[removed]@host/x, postgresql://db/m?password=[removed]"
    )
    assert redact("postgresql://bob:2024/abc@db/m") == "postgresql://[removed]@db/m"
    for harmless in (
        *("see http://host:5000/#/a@b", "http://[::1]:5000/x@y", "git@github.com:x/y"),
        *('{"url":"http://127.0.0.1:5000","mail":"a@b.c"}', '{"url":"http://host","mail":"a@b.c"}'),
        "{'url':'redis://h:6379','mail':'a@b.c'}",
    ):
        assert redact(harmless) == harmless


@pytest.mark.parametrize(
    "name",
    [
        *("DB_PASSWORD", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "API_KEY", "PGPASSWORD", "MY_PWD"),
        *("OPENAI_APIKEY", "DB_PW", "GITHUB_PAT", "SENTRY_DSN", "JWT", "AZURE_STORAGE_CONNECTION_STRING", "HTTP_AUTH"),
    ],
)
def test_the_environments_secrets_are_removed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Values of variables with secret-sounding names are removed wherever they occur."""
    monkeypatch.setenv(name, "correct-horse")
    assert redact("a correct-horse b") == "a [removed] b"


def test_a_password_in_an_address_of_the_environment_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password from an address in the environment is removed, also without the address and when URL-decoded."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:horse%40staple@host")
    assert redact("horse%40staple and horse@staple") == "[removed] and [removed]"


def test_harmless_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables with similar names, ordinary settings and very short values are not removed."""
    for name in (
        "KEYBOARD",
        "MONKEY",
        "COMPAT",
        "PATH",
        "MANPATH",
        "PWD",
        "OLDPWD",
        "AUTHOR",
        "TOKENIZERS_PARALLELISM",
    ):
        monkeypatch.setenv(name, "harmless")
    settings = {"RAY_AUTH_MODE": "token", "MY_KEY": "abc", "MAX_OUTPUT_TOKENS": "4096", "DISABLE_AUTH": "False"}
    settings |= {"SSH_ASKPASS_REQUIRE": "prefer", "GCM_CREDENTIAL_STORE": "cache", "FTP_PASSIVE": "passive"}
    settings |= {"USE_TOKEN": "auto"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    text = " ".join(["harmless", "False", *settings.values()])
    assert redact(text) == text
    monkeypatch.setenv("API_TOKENS", "one77,two77")
    assert redact("one77,two77") == "[removed]"


def test_the_shortest_secret_has_four_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of four characters are removed, shorter ones are not, in a variable and in an address there."""
    monkeypatch.setenv("MY_KEY", "abcd")
    monkeypatch.setenv("ANY_ADDRESS", "redis://bob:e/f#@host/0")
    assert redact("abcd e/f# e/f") == "[removed] [removed] e/f"


@pytest.mark.parametrize(
    "text",
    [
        'auth=("bob", "{}")',
        "HTTPBasicAuth('bob', '{}')",
        "Authorization: Bearer {}",
        'headers = {{"Authorization": "Basic {}"}}',
        '"Server=db;User Id=bob;Password={}"',
        "AccountName=x;AccountKey={};EndpointSuffix=y",
        "host=db user=bob password={}",
        'JWT = "{}"',
        "GITHUB_PAT: {}",
        "https://bucket/x?X-Amz-Signature={}",
        "https://bucket/x?a=b&X-Amz-Security-Token={}&c=d",
        "https://gitlab/x?private_token={}",
        "https://host/x?client_secret={}",
        "https://host/x?a=b&refresh_token={}",
        "X-Api-Key: {}",
        'headers = {{"PRIVATE-TOKEN": "{}"}}',
        'connect(host="x", password="{}")',
        "{{'user': 'bob', 'password': '{}'}}",
        '{{"api_key":"{}"}}',
        "PGPASSWORD={} psql",
        "export DEPLOY_TOKEN={}",
        "psql --password={}",
    ],
)
def test_password_is_recognised_by_its_context(text: str) -> None:
    """Passwords in headers, arguments and connection strings are removed, from messages and from diffs."""
    assert redact(text.format("horse7+staple")) == text.format("[removed]")
    assert "horse" not in redact_diff(f"+{text.format('horse7+staple')}\n")


def test_a_password_in_any_variables_connection_string_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password from a connection string in any variable is removed, also where it occurs by itself."""
    monkeypatch.setenv("DATABASE", "Server=db;Password=horse7;User Id=bob")
    assert redact("a horse7 b") == "a [removed] b"


def test_a_password_with_special_characters_reaches_neither_journal_nor_terminal(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database password with `/`, `#` and `?` is in no journal and no output."""
    address = "postgresql://bob:horse/staple#battery?7@127.0.0.1:1/runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    (results / "notes.py").write_text(f"engine = create_engine({address!r})\n")
    runs.log_evaluation(small_params())
    (journal,) = journals(results)
    assert journal.first_event()["store"] == "postgresql://127.0.0.1:1/runs"
    done = run(results, "pipeline.tracking.sync", ok=False, PYTHONPATH=str(PROJECT), MLFLOW_TRACKING_URI=address)
    assert done.returncode == 2
    assert "the MLflow store cannot be opened" in done.stderr
    for part in ("horse", "staple", "battery"):
        assert files_with(part, results / ".mlflow-journal") == []
        assert part not in done.stdout + done.stderr


SECRET_LINES = [
    'password = "hunter2butlonger"',
    "    password: hunter2butlonger",
    "    token: ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    'aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"',
    'session = "f8a7Zk39QpLmX02vNbT7yRwE5uHs1GdJc6"',
]


# pytest puts a test's id into the environment, so the ids must not contain the secrets.
@pytest.mark.parametrize("line", SECRET_LINES, ids=range(len(SECRET_LINES)))
def test_a_line_of_a_diff_that_holds_a_secret_is_removed(line: str) -> None:
    """An added, removed or unchanged line with a secret is replaced; the lines around it stay."""
    for sign in "+- ":
        assert redact_diff(f"+before\n{sign}{line}\n+after\n") == f"+before\n{sign}[removed]\n+after\n"


def test_a_private_key_is_removed_from_its_beginning_to_its_end() -> None:
    """All lines of a private key are replaced, although they do not look like secrets."""
    key = "+-----BEGIN PRIVATE KEY-----\n+MIIEvQ\n+abc\n+-----END PRIVATE KEY-----\n"
    assert redact_diff(f"{key}+x = 1\n") == "+[removed]\n" * 4 + "+x = 1\n"


def test_ordinary_code_stays() -> None:
    """A diff without secrets is unchanged."""
    diff = "diff --git a/m.py b/m.py\n@@ -1 +1 @@\n-x = 1\n+y = fingerprint(params)  # key by key\n"
    diff += (
        "+pat = re.compile(x)\n+auth = None\n+# basic authentication of users\n+compat=True\n+def authenticate(x, y):\n"
    )
    assert redact_diff(diff) == diff


@pytest.mark.parametrize(
    "text",
    [
        "password: see the manual",
        "The token is in the address (`?token=`), the password in MLFLOW_TRACKING_PASSWORD.",
        "curl -H 'Authorization: Bearer $TOKEN' 'https://host/?token=<your token>'",
        'address = f"http://{host}/?token={token}"; connect(user, password=password, token=None)',
        "RAY_AUTH_TOKEN=secrets.token_hex(32)",
        'TOKEN = "MLFLOW_UI_TOKEN"',
        "PWD=/home/bob OLDPWD=/home n_tokens=4096 key=value cache-key: digits",
    ],
)
def test_text_that_only_mentions_secrets_stays(text: str) -> None:
    """Prose, placeholders, variable names and calls are unchanged."""
    assert redact(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        '{"url":"http://127.0.0.1:5000"},',
        *("http://bob:", "x://:@", "a@", " ", "a_", "-", "auth('", "password=", "; ", "x-"),
    ],
)
@pytest.mark.parametrize("start", ["", "auth", "x://:"])
def test_time_is_linear_in_the_length(start: str, piece: str) -> None:
    """Any text of 200 kB takes less than 2 s: the time is linear in the length, not quadratic."""
    text = start + piece * (200_000 // len(piece))
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 2
