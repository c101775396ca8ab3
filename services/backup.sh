#!/bin/sh
# `make backup`: databases and artifacts of one moment, below backups/. What clients send meanwhile waits at theirs.
set -eu
folder=${1:-backups/$(date +%Y-%m-%d_%H-%M-%S)}
partial=$folder.partial
mkdir -p "$partial"
if [ -n "$(docker compose ps -q --status running mlflow)" ]; then
    docker compose pause mlflow >/dev/null
    trap 'docker compose unpause mlflow >/dev/null' EXIT
fi
for name in mlflow optuna; do
    docker compose exec -T postgres pg_dump -U postgres -Fc "$name" >"$partial/$name.dump"
done
docker compose run --rm --no-deps -T mlflow tar -C /artifacts --exclude ./.health -cf - . >"$partial/artifacts.tar"
mv "$partial" "$folder"
echo "Backup: $folder ($(du -sh "$folder" | cut -f1))"
if [ -n "${ARTIFACTS:-}" ] || grep -qs '^ARTIFACTS=.' .env; then
    echo "Artifacts are in the bucket that ARTIFACTS names, not in this backup: have the bucket keep its versions"
fi
