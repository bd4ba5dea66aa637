"""The tags of MLflow runs that several modules read or write."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# The id of a run's first journal, and the repository of that journal.
JOURNAL_TAG = "journal"
REPOSITORY_TAG = "journal.repository"
# `fingerprints.fingerprint` and `fingerprints.evaluation_hash` of a run.
FINGERPRINT_TAG = "fingerprint"
EVALUATION_TAG = "evaluation"
# Added by `make sync`: the commit of a run's DVC experiment, and the hash of its artifact dvc.lock.
COMMIT_TAG = "dvc.experiment.commit"
LOCK_TAG = "dvc.lock"
# The trial of a Ray sweep that a run belongs to, and the environment variable that passes it to the trial's stages.
TRIAL_TAG = "sweep.trial"
TRIAL_VARIABLE = "PIPELINE_SWEEP_TRIAL"
# The names of the sweeps that a run belongs to, and their separator.
SWEEP_TAG = "sweep"
SEPARATOR = " | "


def tag_row(client: "MlflowClient", row: "Run", name: str) -> None:
    """Add a sweep's name to a run's tag."""
    if name not in (names := sweeps_of(row.data.tags)):
        client.set_tag(row.info.run_id, SWEEP_TAG, SEPARATOR.join([*names, name]))


def sweeps_of(tags: dict[str, str]) -> list[str]:
    """Return the names of the sweeps that a run belongs to."""
    return tags[SWEEP_TAG].split(SEPARATOR) if SWEEP_TAG in tags else []
