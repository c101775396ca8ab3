"""Artifacts in a bucket: MLflow's server takes them from clients that have no keys to it, and returns them."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.chaos.proxy import tracking_server

boto3 = pytest.importorskip("boto3", reason="no boto3, which buckets need")
moto = pytest.importorskip("moto.server", reason="no moto, which plays a bucket")


def test_a_checkpoint_lies_in_the_bucket_and_comes_back(tmp_path, monkeypatch):
    store = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.start()
    try:
        host, port = store.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "may", "AWS_DEFAULT_REGION": "eu-central-1"}
        endpoint = f"http://{host}:{port}"
        for name, value in (keys | {"MLFLOW_S3_ENDPOINT_URL": endpoint}).items():
            monkeypatch.setenv(name, value)
        bucket = boto3.resource("s3", endpoint_url=endpoint).Bucket("checkpoints")
        bucket.create(CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        with tracking_server(tmp_path / "server", artifacts="s3://checkpoints/ghm") as server:
            for name in (*keys, "MLFLOW_S3_ENDPOINT_URL"):
                monkeypatch.delenv(name)  # the client's
            client = MlflowClient(f"http://127.0.0.1:{server}")
            run = client.create_run("0").info
            assert run.artifact_uri.startswith("mlflow-artifacts:/")
            (tmp_path / "last.pt").write_bytes(b"weights" * 100_000)
            client.log_artifact(run.run_id, str(tmp_path / "last.pt"), "checkpoints")
            back = client.download_artifacts(run.run_id, "checkpoints/last.pt", str(tmp_path))
            assert Path(back).read_bytes() == b"weights" * 100_000
            assert [one.path for one in client.list_artifacts(run.run_id, "checkpoints")] == ["checkpoints/last.pt"]
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        (kept,) = bucket.objects.all()
        assert kept.key == f"ghm/0/{run.run_id}/artifacts/checkpoints/last.pt"
        assert kept.size == 700_000
    finally:
        store.stop()
