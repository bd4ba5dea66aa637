"""Migrate the runs of the repository's own store to the tracking server: database rows and artifacts.

    python -m pipeline.server.migrate [--folder .server]

The server must be stopped, and its database must be empty. Ids, histories, parameters, tags, data sets and models stay
the same; artifact addresses become addresses on the server. Either all rows are copied or none: after an interruption
the command starts from scratch. The old store is not changed.
"""

import argparse
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from pipeline.core.errors import PipelineError, on_one_line, run_command
from pipeline.core.processes import sigterm_as_exit
from pipeline.core.repository import main_root
from pipeline.server import postgres
from pipeline.tracking.journal import journals, one_line
from pipeline.tracking.store import (
    follow_a_moved_repository,
    local_path,
    locked,
    sqlite_file,
    store_name,
    tracking_uri,
    upgrade_command,
)

VERSION_TABLE = "alembic_version"
# The tables with the rows that MLflow adds to a new database: the experiment 0 and a workspace.
MADE_WITH_THE_TABLES = ("experiments", "workspaces")
SERVED = "mlflow-artifacts:/"
# {table: (the column with an artifact address, its path on a server)}; the fields are columns of the row.
ADDRESSES = {
    "experiments": ("artifact_location", "{experiment_id}"),
    "runs": ("artifact_uri", "{experiment_id}/{run_uuid}/artifacts"),
    "logged_models": ("artifact_location", "{experiment_id}/models/{model_id}/artifacts"),
}
# Addresses of the model registry, which lie inside a run's or a model's address.
INNER_ADDRESSES = {"model_versions": ("source", "storage_location")}
ROWS_AT_ONCE = 1000
COUNTED = {"runs": "runs", "metrics": "metric values", "params": "parameters", "logged_models": "models"}
# (old artifact address, new path under SERVED)
Moved = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".server"), help="the server's folder in the repository")
    folder = (main_root() / parser.parse_args().folder).resolve()

    root = main_root()
    file = store_to_move(root)
    with sigterm_as_exit(), postgres.running(folder) as database, locked(f"sqlite:///{file}"):
        address = database.address(postgres.RUNS)
        source, target = sa.create_engine(f"sqlite:///{file}"), sa.create_engine(address)
        try:
            follow_a_moved_repository(f"sqlite:///{file}", root)
            make_tables(address)
            with source.connect() as old, target.begin() as new:
                old.exec_driver_sql("BEGIN")  # one consistent read of all tables
                counts = move(old, new, root, folder / "artifacts")
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            reason = on_one_line(error.__cause__ or error)[:300]
            raise PipelineError(f"nothing was moved: {reason}") from None
        finally:
            source.dispose()
            target.dispose()
    print("Moved, counted on the server:", ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    print(f"The old store was not changed: {file} and its artifacts.")
    print("`make server` shows the runs; docs/server.md describes how clients send new ones there.")


def store_to_move(root: Path) -> Path:
    """Return the file of the current sqlite store.

    Raises:
        PipelineError: the store is not sqlite, the file is missing, or runs still wait for delivery to it.
    """
    uri = tracking_uri(root)
    file = sqlite_file(uri)
    if file is None:
        raise PipelineError("MLFLOW_TRACKING_URI is not an sqlite store; unset it to move the repository's own")
    if not file.is_file():
        raise PipelineError(f"there is no store to move: {file}")
    if n_waiting := len(journals(root, store_name(uri, root))):
        raise PipelineError(f"{n_waiting} runs are not delivered to {file} yet; after they have ended, run: make sync")
    return file


def make_tables(address: str) -> None:
    """Let MLflow create its tables in the server's database.

    Raises:
        PipelineError: MLflow refuses the server's database.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient(address).search_experiments(max_results=1)
    except MlflowException as error:
        raise PipelineError(f"the server's database cannot be opened: {one_line(error)}") from None


def move(old: sa.Connection, new: sa.Connection, root: Path, artifacts: Path) -> dict[str, int]:
    """Copy all rows inside `new`'s transaction, and the artifacts; return counts of what is on the server now.

    Raises:
        PipelineError: the databases' tables differ, the new one is not empty, or something did not arrive.
    """
    before, after = tables(old), tables(new)
    require_the_same_tables(old, new, before, after)
    require_empty(new, after)
    moved = addresses_to_move(old, before, root)
    for name in MADE_WITH_THE_TABLES:
        new.execute(after.tables[name].delete())
    # In the order of the foreign keys: no row comes before one that it refers to.
    for table in after.sorted_tables:
        if table.name != VERSION_TABLE:
            copy_rows(old, new, before.tables[table.name], table, moved, root)
            continue_numbers(new, table)
    n_files, n_bytes = copy_artifacts(moved, root, artifacts)
    arrived = {name: count(new, table) for name, table in after.tables.items()}
    for name, now in arrived.items():
        if (was := count(old, before.tables[name])) != now:
            raise PipelineError(f"nothing was moved: {now} of {was} rows of {name} arrived")
    return {what: arrived[name] for name, what in COUNTED.items()} | {"files": n_files, "bytes": n_bytes}


def tables(connection: sa.Connection) -> sa.MetaData:
    """Return a database's tables. JSON is read as text, which keeps its bytes and tells NULL from null."""
    found = sa.MetaData()
    found.reflect(connection)
    for table in found.tables.values():
        for column in table.columns:
            if isinstance(column.type, sa.JSON):
                column.type = sa.Text()
    return found


def require_the_same_tables(old: sa.Connection, new: sa.Connection, before: sa.MetaData, after: sa.MetaData) -> None:
    if VERSION_TABLE not in before.tables:
        raise PipelineError(f"{old.engine.url.database} is not an MLflow store")
    was, now = (
        connection.scalar(sa.select(metadata.tables[VERSION_TABLE].c.version_num))
        for connection, metadata in ((old, before), (new, after))
    )
    if was != now:
        command = upgrade_command(f"sqlite:///{old.engine.url.database}")
        raise PipelineError(f"an older MLflow made the store (its tables are {was}, not {now}); upgrade it: {command}")
    columns = [{name: set(table.c.keys()) for name, table in metadata.tables.items()} for metadata in (before, after)]
    if columns[0] != columns[1]:
        different = ", ".join(
            sorted(name for name in columns[0] | columns[1] if columns[0].get(name) != columns[1].get(name))
        )
        raise PipelineError(f"the store's tables differ from this MLflow's: {different}")


def require_empty(new: sa.Connection, after: sa.MetaData) -> None:
    experiments = after.tables["experiments"]
    found = {table.name: count(new, table) for table in after.tables.values()}
    found["experiments"] = new.scalar(sa.select(sa.func.count()).where(experiments.c.experiment_id != 0)) or 0
    del found[VERSION_TABLE], found["workspaces"]
    if used := ", ".join(f"{n} {name}" for name, n in sorted(found.items()) if n):
        raise PipelineError(f"the server's database is not empty ({used}); choose a new one with --folder")


def count(connection: sa.Connection, table: sa.Table) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def addresses_to_move(old: sa.Connection, before: sa.MetaData, root: Path) -> list[Moved]:
    """Return the artifact addresses of all runs and models that are on this machine, with their new paths."""
    return [
        (row[column], path.format(**row))
        for name, (column, path) in ADDRESSES.items()
        if name != "experiments"  # all artifacts belong to a run or a model
        for row in old.execute(sa.select(before.tables[name])).mappings()
        if local_folder(row[column], root) is not None
    ]


def local_folder(address: str | None, root: Path) -> Path | None:
    """Return the folder of an artifact address; None if it is not on this machine."""
    parts = urlsplit(address or "")
    match parts.scheme:
        case "file":
            return local_path(address or "")
        case "mlflow-artifacts":  # written by an `mlflow server` that was started in the repository
            return root / "mlartifacts" / parts.path.lstrip("/")
        case "":
            return Path(root, address) if address else None
    return None


def copy_rows(
    old: sa.Connection, new: sa.Connection, source: sa.Table, target: sa.Table, moved: list[Moved], root: Path
) -> None:
    columns = [source.c[column.name] for column in target.columns if column.computed is None]
    found = old.execute(sa.select(*columns), execution_options={"yield_per": ROWS_AT_ONCE}).mappings()
    for rows in found.partitions():
        new.execute(target.insert(), [with_new_addresses(target.name, dict(row), moved, root) for row in rows])


def with_new_addresses(table: str, row: dict[str, Any], moved: list[Moved], root: Path) -> dict[str, Any]:
    if table in ADDRESSES:
        column, path = ADDRESSES[table]
        if local_folder(row[column], root) is not None:
            row[column] = SERVED + path.format(**row)
    for column in INNER_ADDRESSES.get(table, ()):
        for address, path in moved:
            if row[column] == address or (row[column] or "").startswith(f"{address}/"):
                row[column] = SERVED + path + row[column].removeprefix(address)
    return row


def continue_numbers(new: sa.Connection, table: sa.Table) -> None:
    """Set the sequences so that new rows get numbers after the copied ones."""
    for column in table.columns:
        sequence = new.scalar(sa.select(sa.func.pg_get_serial_sequence(table.name, column.name)))
        if sequence is not None:
            highest = new.scalar(sa.select(sa.func.max(column)))
            new.execute(sa.select(sa.func.setval(sequence, (highest or 0) + 1, False)))


def copy_artifacts(moved: list[Moved], root: Path, artifacts: Path) -> tuple[int, int]:
    """Copy the files to where the server looks for them; return their number and size in bytes.

    Raises:
        PipelineError: a file was not copied completely.
    """
    artifacts.mkdir(mode=0o700, exist_ok=True)
    n_files, n_bytes = 0, 0
    for address, path in moved:
        folder = local_folder(address, root)
        if folder is None or not folder.is_dir():
            continue  # a run without artifacts
        try:
            # Files left there by an interrupted move are overwritten.
            shutil.copytree(folder, artifacts / path, dirs_exist_ok=True)
        except shutil.Error as error:
            raise PipelineError(f"nothing was moved: {error.args[0][0][2]}") from None
        for file in filter(Path.is_file, folder.rglob("*")):
            n_files, n_bytes = n_files + 1, n_bytes + file.stat().st_size
            if (artifacts / path / file.relative_to(folder)).stat().st_size != file.stat().st_size:
                raise PipelineError(f"nothing was moved: {file} changed during the copy")
    os.sync()  # the files are on the disk before the rows that name them
    return n_files, n_bytes


if __name__ == "__main__":
    run_command(main)
