#!/bin/sh
# `make restore FROM=backups/DATE`: puts databases and artifacts back as they were; what is there now is gone.
set -eu
folder=${1:?give FROM=FOLDER, one that make backup wrote}
for file in mlflow.dump optuna.dump artifacts.tar; do
    [ -f "$folder/$file" ] || { echo "$folder: holds no $file; give a folder that make backup wrote" >&2; exit 2; }
done
docker compose up -d --wait postgres
docker compose stop mlflow dashboard
for name in mlflow optuna; do
    docker compose exec -T postgres pg_restore -U postgres --clean --if-exists --exit-on-error \
        --single-transaction -d "$name" <"$folder/$name.dump"
done
docker compose run --rm --no-deps -T mlflow \
    sh -c 'find /artifacts -mindepth 1 -delete && tar -C /artifacts -xf -' <"$folder/artifacts.tar"
docker compose up -d --wait
echo "Restored: $folder"
