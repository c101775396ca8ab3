"""Fills .env, which docker compose reads, with random secrets where it lacks them; what stands there is kept."""

import os
import re
import secrets
from pathlib import Path

SECRET = re.compile(r"^(\w+_(?:PASSWORD|SECRET|TOKEN))=$")


def main() -> None:
    kept = Path(".env").read_text().splitlines() if Path(".env").exists() else []
    known = {line.split("=")[0] for line in kept if "=" in line and not line.endswith("=")}
    lines = [*kept, *_missing(kept)] if kept else Path(".env.example").read_text().splitlines()
    filled = [f"{found[1]}={secrets.token_hex(24)}" if (found := SECRET.match(line)) else line for line in lines]
    made = [line.split("=")[0] for line in filled if line not in lines]
    partial = Path(".env.partial")
    partial.touch(mode=0o600)
    partial.write_text("\n".join(filled) + "\n")
    os.replace(partial, ".env")
    print(f".env: {', '.join(made) or 'nothing'} written; kept {len(known)} that were there")


def _missing(kept: list[str]) -> list[str]:
    """Secrets of the example that a file of an older version does not name."""
    there = {line.split("=")[0] for line in kept}
    example = Path(".env.example").read_text().splitlines()
    return [line for line in example if SECRET.match(line) and line.split("=")[0] not in there]


if __name__ == "__main__":
    main()
