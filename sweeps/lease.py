"""Who runs a study: one controller at a time, on whatever machine, told by a lease in the study's storage."""

import json
import logging
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from optuna.storages import RDBStorage
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from ghm.failure import Failed

KEY = "lease"  # of the study's user attributes

log = logging.getLogger(__name__)


class LeaseLost(Failed):
    """Another controller runs the study now; what this one still wanted to write was refused."""


class Lease:
    """Leave to write to a study, while entered. It is renewed every third of `period` seconds.

    A lease that was not renewed for two periods has run out, and whoever enters next takes it. The time is that of
    the storage, so clocks of machines need not agree. While it is held, every transaction on `storage` that another
    has overtaken is refused with LeaseLost. ValueError on entering while another controller holds the lease.
    """

    def __init__(self, storage: RDBStorage, study_id: int, name: str, period: float) -> None:
        self.storage, self.study_id, self.name, self.period = storage, study_id, name, period
        self._id, self._since, self._beat, self._ended = uuid4().hex, 0.0, 0, Event()
        self._lost: LeaseLost | None = None

    def __enter__(self) -> "Lease":
        self._insert()
        while (held := self._read()) is not None and self._now() < held["until"]:
            self._await(held)
        self._since = self._now()
        if not self._swap(held, self._mine()):
            raise ValueError(f"{self._study()}: another process began it just now; wait for it, or give another name")
        event.listen(self.storage.engine, "commit", self._fence)
        Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        event.remove(self.storage.engine, "commit", self._fence)
        # A storage that is away lets the lease run out.
        with suppress(SQLAlchemyError):
            if (held := self._read()) is not None and held["id"] == self._id:
                self._swap(held, None)

    def check(self) -> None:
        """LeaseLost as soon as a renewal found that another controller has taken over."""
        if self._lost is not None:
            raise self._lost

    def _await(self, held: dict[str, Any]) -> None:
        """Until a lease ends that nobody renews. ValueError as soon as it is renewed: its holder lives."""
        since = datetime.fromtimestamp(held["since"], UTC).astimezone()
        who = f"process {held['pid']} on {held['host']}, since {since:%Y-%m-%d %H:%M:%S}"
        log.info("%s was run by %s; taking over if it is not heard of", self._study(), who)
        while self._now() < held["until"]:
            time.sleep(min(self.period / 10, 0.5))
            now = self._read()
            if now is None or now["id"] != held["id"]:
                return
            if now["beat"] != held["beat"]:
                raise ValueError(f"{self._study()}: is run by {who}; wait for it, or stop it there")

    def _study(self) -> str:
        return f"hydra.sweeper.study_name={self.name}"

    def _mine(self) -> dict[str, Any]:
        self._beat += 1
        who = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid(), "since": self._since}
        return who | {"beat": self._beat, "until": self._now() + 2 * self.period}

    def _renew(self) -> None:
        said = False
        while not self._ended.wait(self.period / 3):
            try:
                held = self._read()
                self._refuse_overtaken(held)
                self._swap(held, self._mine())
                said = False
            except LeaseLost as error:
                self._lost = error
                return
            except SQLAlchemyError as error:  # the storage may come back before anyone takes over
                if not said:
                    log.warning("%s: its lease could not be renewed (%s)", self._study(), str(error).splitlines()[0])
                said = True

    def _fence(self, connection: Any) -> None:
        """Within each transaction, before it counts: PostgreSQL keeps the row until then, SQLite the database."""
        lock = " FOR SHARE" if connection.dialect.name == "postgresql" else ""
        row = connection.execute(text(f"{SELECT}{lock}"), {"study": self.study_id, "key": KEY}).first()
        self._refuse_overtaken(None if row is None else json.loads(row[0]))

    def _refuse_overtaken(self, held: dict[str, Any] | None) -> None:
        if held is None or held["id"] != self._id:
            who = "" if held is None else f" by process {held['pid']} on {held['host']}"
            raise LeaseLost(
                f"{self._study()}: was taken over{who}, as this process was not heard of for {2 * self.period:g} s; "
                "what it still wanted to write was refused"
            )

    def _now(self) -> float:
        """Seconds, by the clock of the storage."""
        seconds = "extract(epoch from clock_timestamp())"
        if self.storage.engine.dialect.name == "sqlite":
            seconds = "(julianday('now') - 2440587.5) * 86400.0"
        with self.storage.engine.connect() as connection:
            return float(connection.execute(text(f"SELECT {seconds}")).scalar_one())

    def _read(self) -> dict[str, Any] | None:
        with self.storage.engine.connect() as connection:
            row = connection.execute(text(SELECT), {"study": self.study_id, "key": KEY}).first()
        return None if row is None else json.loads(row[0])

    def _insert(self) -> None:
        """Make the row that `_swap` changes, once and for all."""
        insert = "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (:study, :key, 'null')"
        with suppress(IntegrityError), self.storage.engine.begin() as connection:  # it is there
            connection.execute(text(insert), {"study": self.study_id, "key": KEY})

    def _swap(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> bool:
        """Replace the lease if it is still `old`: one statement, so of two who try one succeeds."""
        # Optuna's own API writes without looking.
        values = {"study": self.study_id, "key": KEY, "old": json.dumps(old), "new": json.dumps(new)}
        update = "UPDATE study_user_attributes SET value_json = :new WHERE study_id = :study AND key = :key"
        with self.storage.engine.begin() as connection:
            changed = connection.execute(text(f"{update} AND value_json = :old"), values).rowcount
        return changed == 1


SELECT = "SELECT value_json FROM study_user_attributes WHERE study_id = :study AND key = :key"
