"""The search: Optuna proposes, Ray runs, MLflow shows. Knows configs by their keys only."""
