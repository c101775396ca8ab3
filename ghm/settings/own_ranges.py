"""What config files say of the search for their own keys, under `_search_`: no setting of a run, so runs drop it."""

from omegaconf import DictConfig, open_dict

SEARCH = "_search_"


def take(cfg: DictConfig) -> dict[str, str]:
    """Remove the ranges from a config; by full key, as `{"loss.cls.gamma": "interval(0.5,4.0)"}`."""
    found: dict[str, str] = {}
    with open_dict(cfg):
        _take(cfg, "", found)
    return found


def _take(node: DictConfig, path: str, found: dict[str, str]) -> None:
    if SEARCH in node:
        ranges = node.pop(SEARCH) or {}
        found |= {f"{path}{key}": sweep for key, sweep in ranges.items() if sweep is not None}
    for key in node:
        below = node._get_node(key)
        if isinstance(below, DictConfig) and not (below._is_none() or below._is_missing() or below._is_interpolation()):
            _take(below, f"{path}{key}.", found)
