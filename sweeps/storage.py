"""Optuna's storage of studies: a SQLite file below `runs`, or a database server's."""

from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import event, inspect
from sqlalchemy.exc import SQLAlchemyError

from ghm.secrets import hidden

# For each connection. Write-ahead logging lets others read while trials are written; in it, NORMAL loses the last
# writes in a power cut but no database, and a trial says again what is missing. A PostgreSQL session that
# stopped in the middle of a transaction must not lock out who takes over.
SETTINGS = {
    "sqlite": ["PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL"],
    "postgresql": ["SET idle_in_transaction_session_timeout = '10s'"],
}


def open_storage(url: str | None, folder: Path) -> RDBStorage:
    """The storage at `url`, or a SQLite file in `folder`. ValueError when it cannot be opened."""
    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{folder.resolve()}/optuna.db"
    try:
        storage = RDBStorage(url)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, ImportError) as error:
        reason = hidden(str(error).splitlines()[0])
        raise ValueError(f"hydra.sweeper.storage={hidden(url)}: cannot be opened ({reason}); correct it") from error
    _check_schema(storage, url)

    def settle(connection: object, _: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]  # of whichever driver
        for statement in SETTINGS.get(storage.engine.dialect.name, []):
            cursor.execute(statement)
        cursor.close()

    event.listen(storage.engine, "connect", settle)
    storage.engine.dispose()
    return storage


def _check_schema(storage: RDBStorage, url: str) -> None:
    """ValueError for a database whose tables are not those of this Optuna; its own check compares only versions."""
    there = inspect(storage.engine)
    for table in BaseModel.metadata.tables.values():
        lacking = {column.name for column in table.columns} - {one["name"] for one in there.get_columns(table.name)}
        if lacking:
            raise ValueError(
                f"hydra.sweeper.storage={hidden(url)}: was made by another version of Optuna (its table "
                f"{table.name} has no {min(lacking)}); upgrade it with `optuna storage upgrade`, or give another"
            )
