"""Run the CI's scripts without the service, and check its YAML against the published schemas."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from pipeline.params import load_params
from tests.helpers import PROJECT, copy_project, edited, environment, git, run, small_params, write_params

WORKFLOWS = sorted((PROJECT / ".github/workflows").glob("*.yml"))
JOBS = {name: job for path in WORKFLOWS for name, job in yaml.safe_load(path.read_text())["jobs"].items()}
MARKER = "<!-- pipeline-review -->"


def gitlab_snippet() -> str:
    return re.findall(r"```yaml\n(review:.*?)```", (PROJECT / "docs/review.md").read_text(), re.DOTALL)[0]


class CommentApi:
    """The common part of GitHub's and GitLab's comment threads, on loopback: list, add, replace."""

    def __init__(self) -> None:
        self.comments: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.status = 200
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = int(parse_qs(urlsplit(self.path).query).get("page", ["1"])[0])
                self.reply(api.comments[(page - 1) * 100 : page * 100])

            def do_POST(self) -> None:
                comment = {"id": 1000 + len(api.comments), "user": {"type": "Bot"}, "body": self.body()}
                api.comments.append(comment)
                self.reply(comment)

            def replace(self) -> None:
                number = int(self.path.rsplit("/", 1)[1])
                comment = next(comment for comment in api.comments if comment["id"] == number)
                comment["body"] = self.body()
                self.reply(comment)

            do_PATCH = do_PUT = replace

            def body(self) -> str:
                content = self.rfile.read(int(self.headers["Content-Length"])).decode()
                is_json = self.headers["Content-Type"] == "application/json"
                return str(json.loads(content)["body"] if is_json else parse_qs(content)["body"][0])

            def reply(self, value: Any) -> None:
                api.tokens.add(self.headers["Authorization"] or self.headers["PRIVATE-TOKEN"])
                content = json.dumps(value).encode()
                self.send_response(api.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def api() -> Iterator[CommentApi]:
    api = CommentApi()
    yield api
    api.server.shutdown()
    api.server.server_close()


def comment(api: CommentApi, folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "review.md").write_text(text)
    settings = {"GITHUB_API_URL": api.url, "GITHUB_REPOSITORY": "o/r", "PULL_REQUEST": "7", "GITHUB_TOKEN": "secret"}
    return subprocess.run(
        [sys.executable, str(PROJECT / ".ci/comment.py"), "review.md"],
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        text=True,
    )


def test_one_comment_is_updated_not_repeated(api: CommentApi, tmp_path: Path) -> None:
    """The first report is a new comment and later reports replace it, even on the second page of a thread."""
    api.comments = [{"id": i, "user": {"type": "User"}, "body": f"{MARKER} quoted by a person"} for i in range(150)]
    assert comment(api, tmp_path, "first").stdout == "comment written\n"
    assert comment(api, tmp_path, "second").stdout == "comment updated\n"
    assert len(api.comments) == 151
    assert api.comments[-1]["body"] == f"{MARKER}\nsecond"
    assert api.tokens == {"Bearer secret"}


def test_a_long_report_is_cut(api: CommentApi, tmp_path: Path) -> None:
    """GitHub refuses comments over 65,536 characters, so the comment is cut and refers to the job's summary."""
    assert comment(api, tmp_path, "x" * 100_000).returncode == 0
    assert len(api.comments[0]["body"]) < 65_536
    assert api.comments[0]["body"].endswith("the rest is in the job's summary.")


def test_a_refused_comment_fails_with_one_line(api: CommentApi, tmp_path: Path) -> None:
    """A token without write access fails with a one-line error, without traceback or token."""
    api.status = 403
    done = comment(api, tmp_path, "text")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the comment could not be written: HTTP Error 403")
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [(["HEAD", "HEAD"], 0, "No parameter changed."), (["nowhere", "HEAD"], 2, "unknown revision 'nowhere'")],
)
def test_the_review_script(tmp_path: Path, arguments: list[str], code: int, expected: str) -> None:
    """The script writes report and summary whatever the verdict, and exits with the gate's code."""
    project = copy_project(tmp_path / "a project")
    done = subprocess.run(
        [".ci/review", *arguments],
        cwd=project,
        env=environment(GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"), FILE_URL="https://host/{commit}/{path}"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert expected in (project / "review.md").read_text()
    assert (tmp_path / "summary.md").read_text() == (project / "review.md").read_text()


def test_the_review_script_can_review_the_working_tree(tmp_path: Path) -> None:
    """An empty HEAD stands for the files in the working tree."""
    project = copy_project(tmp_path / "project")
    n_epochs = load_params(project / "params.yaml").train.n_epochs
    with edited(project / "params.yaml", f"n_epochs: {n_epochs}", f"n_epochs: {n_epochs + 1}"):
        done = subprocess.run(
            [".ci/review", "HEAD", ""], cwd=project, env=environment(), capture_output=True, text=True
        )
        assert git(project, "status", "--porcelain") == " M params.yaml\n"
    assert done.returncode == 3
    assert f"| train.n_epochs | {n_epochs} | {n_epochs + 1} |" in done.stdout


@pytest.mark.parametrize("schema", ["github-workflows", "gitlab-ci"])
def test_the_yaml_fits_the_published_schema(tmp_path: Path, schema: str) -> None:
    """GitHub's workflows and the documented GitLab snippet match the published schemas."""
    (tmp_path / ".gitlab-ci.yml").write_text(gitlab_snippet())
    paths = WORKFLOWS if schema == "github-workflows" else [tmp_path / ".gitlab-ci.yml"]
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_actions_are_pinned_by_commit() -> None:
    """Every action is a full commit hash, followed by its version as a comment."""
    uses = [action for path in WORKFLOWS for action in re.findall(r"uses: (.*)", path.read_text())]
    assert len(uses) > 8
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v[\d.]+", action) for action in uses)


def test_a_write_token_never_meets_code_of_the_pull_request() -> None:
    """Only `comment` may write; it checks out the base, and it does not run for forks."""
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
        assert "pull_request_target" not in path.read_text()
    assert [name for name, job in JOBS.items() if "permissions" in job] == ["comment"]
    job = JOBS["comment"]
    assert job["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert "head.repo.full_name == github.repository" in job["if"]
    checkouts = [step for step in job["steps"] if "checkout" in step.get("uses", "")]
    assert [step["with"]["ref"] for step in checkouts] == ["${{ github.event.pull_request.base.sha }}"]
    for other in JOBS.values():
        for step in other["steps"]:
            assert "checkout" not in step.get("uses", "") or step["with"]["persist-credentials"] is False
            # Text by a pull request's author must not become part of a command.
            assert "${{" not in step.get("run", "")


def test_the_steps_are_commands_of_this_repository() -> None:
    """Every step runs an existing make target or an existing script, or installs with pip."""
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for job in JOBS.values():
        for command in [step["run"] for step in job["steps"] if "run" in step]:
            if command.startswith("make "):
                assert command.split()[1] in targets
            elif not command.startswith("pip install"):
                script = re.search(r"\.ci/[\w.]+", command)
                assert script is not None, command
                assert (PROJECT / script[0]).is_file()


def test_gitlabs_comment_is_updated_not_repeated(api: CommentApi, tmp_path: Path) -> None:
    """The snippet's script, run by bash, writes one note and replaces it the next time."""
    script = "\n".join(["set -eu", *yaml.safe_load(gitlab_snippet())["comment"]["script"]])
    settings = {"CI_API_V4_URL": api.url, "CI_PROJECT_ID": "1", "CI_MERGE_REQUEST_IID": "2", "REVIEW_TOKEN": "secret"}
    for text in ("first", "second & third"):
        (tmp_path / "review.md").write_text(text)
        subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment(**settings), check=True)
    assert [note["body"] for note in api.comments] == [f"{MARKER}\nsecond & third"]
    assert api.tokens == {"secret"}


def add_wheel(index: Path, name: str, version: str) -> None:
    """Add an empty package to a folder that a web server can serve as a package index."""
    info = f"{name}-{version}.dist-info"
    (index / name).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(index / name / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_setup_installs_with_uv_from_pips_index_or_with_pip(tmp_path: Path) -> None:
    """uv uses the index of pip's configuration, pip installs if uv fails, and TORCH=cpu uses its own index."""
    for version in ("1.0", "2.0"):
        add_wheel(tmp_path / "web/simple", "torch", version)
    add_wheel(tmp_path / "web/cpu", "torch", "2.0+cpu")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "web")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {web}/simple\n")
    (tmp_path / "uv").write_text("#!/bin/sh\necho 'this uv is broken' >&2\nexit 1\n")
    (tmp_path / "uv").chmod(0o755)
    folder = tmp_path / "a path/with spaces"
    (folder / ".ci").mkdir(parents=True)
    for name in ("Makefile", ".ci/install", "requirements-dev.txt"):
        shutil.copy(PROJECT / name, folder / name)

    def setup(requirements: str, *arguments: str, **changes: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run `make setup`; return its process and torch's [version, installer] afterwards."""
        (folder / "requirements.txt").write_text(requirements)
        (folder / ".venv/installed").unlink(missing_ok=True)
        inherited = {key: value for key, value in environment().items() if not key.startswith(("PIP_", "UV_"))}
        variables = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "UV_CACHE_DIR": str(tmp_path / "cache")}
        command = ["make", "setup", f"PYTHON={sys.executable}", *arguments]
        done = subprocess.run(command, cwd=folder, env=inherited | variables | changes, capture_output=True, text=True)
        (info,) = folder.glob(".venv/lib/python*/site-packages/torch-*.dist-info")
        return done, [info.name.split("-")[1].removesuffix(".dist"), (info / "INSTALLER").read_text().strip()]

    try:
        done, torch = setup("torch==1.0\n")
        assert done.stdout == "uv installs -r requirements.txt into .venv\n"
        assert (done.returncode, torch) == (0, ["1.0", "uv"])

        done, torch = setup("torch==2.0\nnvidia==1.0\n", "TORCH=cpu", f"CPU_INDEX={web}/cpu")
        assert (done.returncode, torch) == (0, ["2.0+cpu", "uv"]), done.stderr

        broken = f"{tmp_path}:{os.environ['PATH']}"
        done, torch = setup("torch==1.0\n", PATH=broken)
        assert "this uv is broken" in done.stderr
        assert "pip installs -r requirements.txt into .venv" in done.stdout
        assert (done.returncode, torch) == (0, ["1.0", "pip"])

        done, _ = setup("torch==3.0\n", PATH=broken)
        assert done.returncode != 0
        assert "No matching distribution found for torch==3.0" in done.stderr
        assert not (folder / ".venv/installed").exists()
    finally:
        server.shutdown()
        server.server_close()


def test_help_names_every_target() -> None:
    """`make help` lists each target that is not a file, in columns, within 120 characters."""
    makefiles = "".join((PROJECT / name).read_text() for name in ("Makefile", "project.mk"))
    phony = " ".join(re.findall(r"^\.PHONY: (.*?[^\\])$", makefiles, re.MULTILINE | re.DOTALL))
    lines = subprocess.run(
        ["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert sorted(line.split()[1] for line in lines) == sorted(phony.replace("\\", "").split())
    assert all(re.match(r"make [\w -]{13}  \S", line) for line in lines)
    assert max(map(len, lines)) <= 120


def test_experiments_fit_a_screen(tmp_dir: Path) -> None:
    """`make experiments` shows only the changed parameters and both errors, within 120 characters."""
    git(tmp_dir, "init", "-q")
    run(tmp_dir, "dvc", "init", "-q")
    Path("reports").mkdir()
    Path("measure.py").write_text(
        "import json, yaml\n"
        "k = yaml.safe_load(open('params.yaml'))['model']['bottleneck_size']\n"
        "def times_k(value):\n"
        "    if isinstance(value, dict):\n"
        "        return {name: times_k(item) for name, item in value.items()}\n"
        "    return value if isinstance(value, str) else value * k\n"
        "for name in ('train', 'evaluate'):\n"
        f"    values = json.load(open(f'{PROJECT}/reports/{{name}}.json'))\n"
        "    json.dump(times_k(values), open(f'reports/{name}.json', 'w'))\n"
    )
    Path("dvc.yaml").write_text(
        "stages: {measure: {cmd: python measure.py, deps: [measure.py], params: [data, model, train, evaluate], "
        "metrics: [reports/train.json: {cache: false}, reports/evaluate.json: {cache: false}]}}"
    )
    write_params(small_params())
    run(tmp_dir, "dvc", "repro")
    git(tmp_dir, "add", "-A")
    git(tmp_dir, "commit", "-q", "-m", "first")
    run(tmp_dir, "dvc", "exp", "run", "-n", "size-4-seed-1", "-S", "model.bottleneck_size=4", "-S", "train.seed=1")
    command = ["make", "-f", f"{PROJECT}/Makefile", "-o", "setup", f"BIN={Path(sys.executable).parent}", "experiments"]
    table = subprocess.run(command, cwd=tmp_dir, env=environment(), capture_output=True, text=True, check=True).stdout
    for name in ("valid.best_mse", "test.mse", "model.bottleneck_size", "train.seed", "size-4-seed-1"):
        assert name in table
    assert max(map(len, table.splitlines())) <= 120


def test_the_hooks_before_a_commit_run_the_projects_tools() -> None:
    """Each hook's tool is in the environment, and the files that it names exist."""
    (repository,) = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff", "ruff-format", "words", "deps", "lock"}
    for hook in repository["hooks"]:
        tool, *arguments = hook["entry"].replace("bash -c '", "").split()
        assert (Path(sys.executable).parent / Path(tool).name).exists(), hook["id"]
        assert all((PROJECT / name).exists() for name in arguments if name.startswith("tests/")), hook["id"]


def test_the_development_container_uses_a_target_of_the_makefile() -> None:
    """Its set-up command is one that `make` knows, and its port is that of `make ui`."""
    container = json.loads((PROJECT / ".devcontainer/devcontainer.json").read_text())
    makefile = (PROJECT / "Makefile").read_text()
    assert re.search(rf"^{container['postCreateCommand'].split()[1]}:", makefile, re.MULTILINE)
    assert f"PORT ?= {container['forwardPorts'][0]}\n" in makefile
