"""Post a Markdown file as a pull request comment: create it the first time, then update it.

    python .ci/comment.py review.md

Needs only Python. Reads GITHUB_API_URL and GITHUB_REPOSITORY, which GitHub Actions sets, and PULL_REQUEST (its number)
and GITHUB_TOKEN (with write access to pull requests), which the workflow sets.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

# Identifies our comment; it is invisible when rendered.
MARKER = "<!-- pipeline-review -->"
# GitHub refuses longer comments.
LONGEST = 65_000


def main() -> None:
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    if len(text) > LONGEST:
        text = text[:LONGEST] + "\n\n… the rest is in the job's summary."
    issues = f"/repos/{os.environ['GITHUB_REPOSITORY']}/issues"
    thread = f"{issues}/{os.environ['PULL_REQUEST']}/comments"
    body = {"body": f"{MARKER}\n{text}"}
    try:
        own = find_own(thread)
        if own is None:
            call("POST", thread, body)
        else:
            call("PATCH", f"{issues}/comments/{own}", body)
    except (HTTPError, URLError) as error:
        sys.exit(f"error: the comment could not be written: {error}")
    print("comment written" if own is None else "comment updated")


def find_own(thread: str) -> int | None:
    """Return the id of the comment from an earlier run: it starts with the marker, and its author is a bot."""
    page = 1
    while comments := call("GET", f"{thread}?per_page=100&page={page}"):
        for comment in comments:
            if comment["body"].startswith(MARKER) and comment["user"]["type"] == "Bot":
                return int(comment["id"])
        page += 1
    return None


def call(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    request = Request(
        os.environ["GITHUB_API_URL"] + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}",
            "Accept": "application/vnd.github+json",
            "Content-Type": "application/json",
        },
    )
    with urlopen(request, timeout=30) as response:
        return json.load(response)


if __name__ == "__main__":
    main()
