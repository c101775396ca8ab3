"""Whether the nodes of a cluster see one folder, and what is refused where they do not."""

import pytest

from ghm.remote import nodes


def test_a_folder_is_known_by_its_mark(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    assert not nodes.sees(one, "anything")
    assert nodes.mark(one) == nodes.mark(one) != nodes.mark(other)
    assert nodes.sees(one, nodes.mark(one))
    assert not nodes.sees(one, nodes.mark(other))


@pytest.mark.parametrize(
    ("count", "uri", "refused"),
    [
        (1, None, False),
        (1, "sqlite:////runs/optuna.db", False),
        (2, None, True),
        (2, "sqlite:////runs/optuna.db", True),
        (2, "postgresql+psycopg2://host/db", False),
        (2, "http://host:5000", False),
    ],
)
def test_a_database_that_is_a_file_is_refused_where_there_are_several_nodes(monkeypatch, count, uri, refused):
    monkeypatch.setattr(nodes, "count", lambda: count)
    if not refused:
        nodes.refuse_file("storage", uri, "give another")
        return
    with pytest.raises(ValueError, match="2 nodes, and a SQLite file lies on one of them; give another"):
        nodes.refuse_file("storage", uri, "give another")
