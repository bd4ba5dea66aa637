"""What is kept out of messages and diffs."""

import time
from pathlib import Path

import pytest

from pipeline.tracking import runs
from pipeline.tracking.journal import journals
from pipeline.tracking.redaction import redact, redact_diff
from tests.helpers import PROJECT, files_with, run, small_params


def test_an_address_loses_its_credentials() -> None:
    """User and password go, host and path stay."""
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
    """Values of variables whose names say that they are secret, wherever they stand."""
    monkeypatch.setenv(name, "correct-horse")
    assert redact("a correct-horse b") == "a [removed] b"


def test_a_password_in_an_address_of_the_environment_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it stands alone, and as it reads once decoded."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:horse%40staple@host")
    assert redact("horse%40staple and horse@staple") == "[removed] and [removed]"


def test_harmless_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that only sounds alike, and values too short to be told from other text."""
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
    """In a variable, and as a password in an address there."""
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
def test_a_password_is_known_by_what_stands_around_it(text: str) -> None:
    """In headers, arguments and connection strings, of messages and of diffs."""
    assert redact(text.format("horse7+staple")) == text.format("[removed]")
    assert "horse" not in redact_diff(f"+{text.format('horse7+staple')}\n")


def test_a_password_in_any_variables_connection_string_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it stands without the rest."""
    monkeypatch.setenv("DATABASE", "Server=db;Password=horse7;User Id=bob")
    assert redact("a horse7 b") == "a [removed] b"


def test_a_password_with_special_characters_reaches_neither_journal_nor_terminal(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/`, `#` and `?` are valid in a database's address."""
    address = "postgresql://bob:horse/staple#battery?7@127.0.0.1:1/runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    (results / "notes.py").write_text(f"engine = create_engine({address!r})\n")
    runs.log_evaluation(small_params())
    (journal,) = journals(results)
    assert journal.start()["store"] == "postgresql://127.0.0.1:1/runs"
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


# pytest puts a test's id into the environment.
@pytest.mark.parametrize("line", SECRET_LINES, ids=range(len(SECRET_LINES)))
def test_a_line_of_a_diff_that_holds_a_secret_is_removed(line: str) -> None:
    """Added, removed or unchanged; the lines around it stay."""
    for sign in "+- ":
        assert redact_diff(f"+before\n{sign}{line}\n+after\n") == f"+before\n{sign}[removed]\n+after\n"


def test_a_private_key_is_removed_from_its_beginning_to_its_end() -> None:
    """Its lines look like nothing in particular."""
    key = "+-----BEGIN PRIVATE KEY-----\n+MIIEvQ\n+abc\n+-----END PRIVATE KEY-----\n"
    assert redact_diff(f"{key}+x = 1\n") == "+[removed]\n" * 4 + "+x = 1\n"


def test_ordinary_code_stays() -> None:
    """A diff without secrets is kept letter by letter."""
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
def test_what_only_speaks_of_secrets_stays(text: str) -> None:
    """Prose, placeholders, names of variables, calls."""
    assert redact(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        '{"url":"http://127.0.0.1:5000"},',
        *("http://bob:", "x://:@", "a@", " ", "a_", "-", "auth('", "password=", "; ", "x-"),
    ],
)
@pytest.mark.parametrize("start", ["", "auth", "x://:"])
def test_long_texts_take_no_long_time(start: str, piece: str) -> None:
    """200 kB, whatever they are made of; the time grows with the length, not its square."""
    text = start + piece * (200_000 // len(piece))
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 2
