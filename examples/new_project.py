"""Start a new project with this project's machinery and an example's experiment instead of the autoencoder.

    python examples/new_project.py ../my-project [--example classifier]

Makes the folder and a git repository in it with one commit. The machinery is copied unchanged.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MACHINERY = (
    "pipeline/__init__.py",
    "pipeline/core",
    "pipeline/tracking",
    "pipeline/sweep",
    "pipeline/review",
    "pipeline/server",
    "pipeline/run.py",
    "pipeline/tidy.py",
    ".ci/comment.py",
    ".ci/install",
    ".ci/review",
    ".dvc/.gitignore",
    ".dvc/config",
    ".dvcignore",
    ".github/workflows/ci.yml",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "tests/test_dvc_yaml.py",
    *(f"requirements{part}.{kind}" for part in ("", "-cluster", "-dev", "-review") for kind in ("in", "txt")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    examples = sorted(path.name for path in (ROOT / "examples").iterdir() if path.is_dir())
    parser.add_argument("--example", choices=examples, default="classifier")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        sys.exit(f"error: {arguments.folder} already exists; name a new folder")
    listed = subprocess.run(["git", "ls-files", "-z", "--", *MACHINERY], cwd=ROOT, capture_output=True, check=True)
    example = f"examples/{arguments.example}"
    own = subprocess.run(["git", "ls-files", "-z", "--", example], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        copy(ROOT / name, arguments.folder / name)
    for name in filter(None, own.stdout.decode().split("\0")):
        copy(ROOT / name, arguments.folder / Path(name).relative_to(example))
    has_identity = subprocess.run(["git", "config", "user.email"], capture_output=True).returncode == 0
    identity = [] if has_identity else ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", f"Start from the {example}"]):
        subprocess.run(["git", *identity, *command], cwd=arguments.folder, check=True)
    print(f"{arguments.folder} is ready: cd {arguments.folder} && make run")


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


if __name__ == "__main__":
    main()
