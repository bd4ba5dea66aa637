"""Find the runs that produced a model file, by its content.

python -m pipeline.tracking.find_run [FILE]      (default: the model in the workspace)
"""

import argparse
from pathlib import Path

from pipeline.core import dvcfiles
from pipeline.core.errors import PipelineError, run_command
from pipeline.experiment import EXPERIMENT
from pipeline.tracking.store import open_store, search_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=EXPERIMENT.model_path)
    path = parser.parse_args().file
    if not Path(path).is_file():
        raise PipelineError(f"there is no file {path}; `dvc checkout` restores the last results")
    client, experiment_id = open_store()
    md5 = dvcfiles.md5s([path])[path]
    runs = search_all(client, experiment_id, f"tags.`model.md5` = '{md5}'")
    if not runs:
        raise PipelineError(f"no run in the store made {path}; `make sync` creates one for the workspace's results")
    for run in runs:
        tags = run.data.tags
        commit = tags.get("dvc.experiment.commit") or tags.get("mlflow.source.git.commit")
        code = commit[:10] if commit else "without git"
        dirty = " with changes" if tags.get("mlflow.source.git.dirty") == "true" else ""
        print(f"{run.info.run_id}  {run.info.run_name}  {run.info.status}  code {code}{dirty}")


if __name__ == "__main__":
    run_command(main)
