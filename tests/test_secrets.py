"""No password is printed or written, whatever a run leaves behind."""

from pathlib import Path

import pytest

from ghm.secrets import hidden, without_secrets

SECRET = "s3cretw0rd"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pass@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://me:p@ss/w:rd@host/db", "postgresql+psycopg2://***@host/db"),
        ("two: http://a:b@c and s3://k:l@m!", "two: http://***@c and s3://***@m!"),
        ("mysql://host/db?user=me&password=x&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("https://host/x?access_token=abc", "https://host/x?access_token=***"),
        ("sqlite:////home/me@work/runs/mlflow.db", "sqlite:////home/me@work/runs/mlflow.db"),
        ("http://host/x", "http://host/x"),
        ("me@host", "me@host"),
    ],
)
def test_addresses_lose_their_secrets(text, shown):
    assert hidden(text) == shown


def test_nested_settings_lose_them_too():
    assert without_secrets({"a": ["http://u:p@h", 1, None], "b": {"c": True}}) == {
        "a": ["http://***@h", 1, None],
        "b": {"c": True},
    }


def left() -> list[str]:
    """Files below here that hold the secret."""
    files = [path for path in Path().rglob("*") if path.is_file()]
    return [str(path) for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.usefixtures("cluster")
def test_a_sweep_with_passwords_leaves_none(ghm, capfd):
    database = f"sqlite:///file:{Path.cwd()}/study.db?mode=rwc&uri=true&password={SECRET}"
    code = ghm(
        "train",
        "-m",
        "seed=1,2",
        "epochs=1",
        "data.train_images=16",
        "data.val_images=8",
        "figures=false",
        f"hydra.sweeper.storage={database}",
        "hydra.sweeper.study_name=s",
        f"+note=https://me:{SECRET}@host/x",
    )
    shown = capfd.readouterr()
    assert code in (0, 1), shown.err
    assert SECRET not in shown.out + shown.err
    assert Path("study.db").exists()
    assert list(Path("runs/sweeps/s").glob("*/.hydra/config.yaml"))
    assert "https://***@host/x" in Path("runs/sweeps/s/0000/.hydra/config.yaml").read_text()
    assert left() == []


@pytest.mark.parametrize("mode", [(), ("-m", "seed=1,2")])
@pytest.mark.parametrize(
    "where", ["tracking.uri=http://me:{}@127.0.0.1:9", "hydra.sweeper.storage=mysql://me:{}@127.0.0.1:9/x"]
)
def test_a_refused_run_with_passwords_leaves_none(ghm, capfd, monkeypatch, mode, where):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # tracebacks, too
    small = ("epochs=1", "data.train_images=16", "data.val_images=8", "figures=false")
    assert ghm("train", *mode, *small, where.format(SECRET)) == (2 if mode or "tracking" in where else 0)
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err
    assert left() == []
