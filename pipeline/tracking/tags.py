"""The tags of MLflow runs that several modules read or write."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# The journal with which a run began, and the repository that the journal lies in.
JOURNAL_TAG = "journal"
REPOSITORY_TAG = "journal.repository"
# `fingerprints.fingerprint` of a run's training, and `fingerprints.evaluation_hash`.
FINGERPRINT_TAG = "fingerprint"
EVALUATION_TAG = "evaluation"
# What `make sync` adds: the commit of a run's DVC experiment, and the hash of the dvc.lock among its artifacts.
COMMIT_TAG = "dvc.experiment.commit"
LOCK_TAG = "dvc.lock"
# The point of a sweep on Ray that a run is of, and the variable that names it to the point's stages.
POINT_TAG = "sweep.point"
POINT_VARIABLE = "PIPELINE_SWEEP_POINT"
# The names of the sweeps that a run belongs to, and what separates them.
SWEEP_TAG = "sweep"
SEPARATOR = " | "


def tag_row(client: "MlflowClient", row: "Run", name: str) -> None:
    """Add a sweep's name to those of a row."""
    if name not in (names := sweeps_of(row.data.tags)):
        client.set_tag(row.info.run_id, SWEEP_TAG, SEPARATOR.join([*names, name]))


def sweeps_of(tags: dict[str, str]) -> list[str]:
    """The names of the sweeps that a row belongs to."""
    return tags[SWEEP_TAG].split(SEPARATOR) if SWEEP_TAG in tags else []
