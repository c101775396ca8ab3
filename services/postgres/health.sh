#!/bin/sh
# Healthy is a server that MLflow and Optuna reach with the passwords of .env, and that writes what it is given.
#
# It also makes their users and databases, and gives a user the password of .env where that has changed: over the
# server's own socket, which nobody outside of this container has.
set -eu

# By the address that others use: on 127.0.0.1 the server asks for no password.
address=$(hostname -i | cut -d' ' -f1)

reaches() { # name password statement
    PGPASSWORD=$2 psql -qtA "host=$address user=$1 dbname=$1 connect_timeout=3" -c "$3" >/dev/null 2>&1
}

make() { # name password
    psql -qtA -U postgres -v ON_ERROR_STOP=1 -v name="$1" -v password="$2" <<'SQL'
SELECT format('CREATE ROLE %I LOGIN', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
ALTER DATABASE :"name" OWNER TO :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

for name in mlflow optuna; do
    case $name in
    mlflow) password=$MLFLOW_DB_PASSWORD ;;
    optuna) password=$OPTUNA_DB_PASSWORD ;;
    esac
    reaches $name "$password" 'SELECT 1' || make $name "$password"
    reaches $name "$password" 'CREATE TEMP TABLE alive AS SELECT now()'
done
