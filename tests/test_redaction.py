"""What is kept out of messages and diffs."""

import pytest

from pipeline.redaction import redact, redact_diff


def test_an_address_loses_its_credentials() -> None:
    """User and password go, host and path stay."""
    assert redact("at http://bob:pa55@host:5000/x and postgresql://ann:b@db/m") == (
        "at http://[removed]@host:5000/x and postgresql://[removed]@db/m"
    )
    assert redact("see http://host:5000/#/a@b") == "see http://host:5000/#/a@b"


@pytest.mark.parametrize(
    "name", ["DB_PASSWORD", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "API_KEY", "PGPASSWORD", "MY_PWD"]
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
    monkeypatch.setenv("KEYBOARD", "qwertz")
    monkeypatch.setenv("MY_KEY", "a")
    monkeypatch.setenv("PWD", "/app")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert redact("qwertz a /app/mlflow.db false") == "qwertz a /app/mlflow.db false"


SECRET_LINES = [
    'password = "hunter2butlonger"',
    "    password: hunter2butlonger",
    "    token: ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    'aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"',
    'session = "f8a7Zk39QpLmX02vNbT7yRwE5uHs1GdJc6"',
]


@pytest.mark.parametrize("line", SECRET_LINES)
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
    assert redact_diff(diff) == diff
