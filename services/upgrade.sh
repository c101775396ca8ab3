#!/bin/sh
# `make upgrade`, with the files of a newer version checked out: a backup, new images, each schema migrated once.
set -eu
docker compose up -d --wait postgres
sh services/backup.sh
docker compose build mlflow dashboard
docker compose stop mlflow dashboard
docker compose run --rm --no-deps -T mlflow mlflow db upgrade postgresql+psycopg2://mlflow@postgres/mlflow
docker compose run --rm --no-deps -T dashboard sh -c 'optuna storage upgrade --storage "$STUDIES"'
docker compose up -d --wait
echo "Upgraded. Clients of another version than $(docker compose exec -T mlflow mlflow --version) are told so by ghm doctor"
